"""One script a system: trains its SASRec as its users do, and says how fast."""
