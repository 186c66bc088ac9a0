"""The endpoint's description for programs (OpenAPI 3.1) and for people (one page of HTML)."""

import html
import json
from typing import Any

from recsys.serve.schema import DEFAULT_K, Limits

Schema = dict[str, Any]
STATUSES = {
    "400": "The body is not JSON.",
    "408": "The answer took too long.",
    "413": "The body is too large.",
    "422": "The body is JSON of another shape, out of the limits, or asks what this model cannot.",
    "503": "Too many requests wait; try again later.",
}
_BATCH_SIZE: Schema = {
    "description": "How many requests the model answered together.",
    "schema": {"type": "integer"},
}


def openapi_document(limits: Limits, num_items: int, scores_seen: bool = True) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of an endpoint with these limits.

    Args:
        scores_seen: whether the model's scores of items of the history mean anything.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys", "version": "1", "description": "Next-item recommendations."},
        "paths": {
            "/v1/recommend": {"post": _recommend()},
            "/v1/model": {"get": _get("The model in service: its config, report and version.")},
            "/healthz": {"get": _get("Whether the endpoint can answer.")},
        },
        "components": {"schemas": _schemas(limits, min(num_items, limits.max_k), scores_seen)},
    }


def _recommend() -> Schema:
    errors = {
        code: {"description": text, "content": _content("Error")}
        for code, text in STATUSES.items()
        if code not in ("408", "503")
    }
    plain = {code: {"description": STATUSES[code]} for code in ("408", "503")}
    return {
        "summary": "Ranked items for each history.",
        "operationId": "recommend",
        "requestBody": {"required": True, "content": _content("Request")},
        "responses": {
            "200": {
                "description": "One recommendation a history.",
                "headers": {"x-batch-size": _BATCH_SIZE},
                "content": _content("Answer"),
            },
            **errors,
            **plain,
        },
    }


def _get(summary: str) -> Schema:
    schema = {"application/json": {"schema": {"type": "object"}}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": schema}}}


def _content(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schemas(limits: Limits, most: int, scores_seen: bool) -> dict[str, Schema]:
    text = {"type": "string"}
    return {
        "Request": _request(limits, most, scores_seen),
        "Answer": _closed(
            model_version=text,
            recommendations={
                "type": "array",
                "items": {"$ref": "#/components/schemas/Recommendation"},
            },
        ),
        "Recommendation": _closed(
            items={"type": "array", "items": _closed(item_id=text, score={"type": "number"})},
            unknown_items={
                "type": "array",
                "items": text,
                "description": "Items of the history that the model does not know; ignored.",
            },
            popular={
                "type": "boolean",
                "description": "True where no item of the history is known: the items are the "
                "most popular ones and the scores their counts in training.",
            },
        ),
        "Error": _closed(error=text),
    }


def _request(limits: Limits, most: int, scores_seen: bool) -> Schema:
    history = {
        "type": "array",
        "maxItems": limits.max_history_items,
        "items": {"type": ["string", "integer"]},
        "description": "Item ids, oldest first.",
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["histories"],
        "properties": {
            "histories": {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.max_histories,
                "items": history,
            },
            "k": {
                "type": "integer",
                "minimum": 1,
                "maximum": most,
                "default": min(DEFAULT_K, most),
                "description": "Items wanted for each history; all lists of one answer together "
                f"have at most {limits.max_recommendations}.",
            },
            "exclude_seen": {
                "type": "boolean",
                "default": True,
                "description": "Leave items of the history out.",
                **({} if scores_seen else {"const": True}),
            },
        },
        "examples": [{"histories": [["1", "2"], []], "k": 10, "exclude_seen": True}],
    }


def _closed(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem }}
pre, textarea {{ font: 14px/1.4 ui-monospace, monospace; background: #8882; padding: .7rem;
  border: 0; overflow: auto; width: 100%; box-sizing: border-box }}
:root {{ color-scheme: light dark }}
</style>
<h1>{title}</h1><p>{description} The whole description: <a href="openapi.json">openapi.json</a>.</p>
{operations}
<h2>Try it</h2>
<label for="body">POST v1/recommend</label>
<textarea id="body" rows="4">{example}</textarea>
<p><button id="send">Send</button></p><pre id="answer" aria-live="polite"></pre>
<script>
document.getElementById("send").onclick = async () => {{
  const body = document.getElementById("body").value;
  const reply = await fetch("v1/recommend", {{method: "POST", body}});
  const text = await reply.text();
  let shown = text;
  try {{ shown = JSON.stringify(JSON.parse(text), null, 1); }} catch {{ }}
  document.getElementById("answer").textContent = reply.status + "\\n" + shown;
}};
</script></html>
"""


def docs_page(document: dict[str, Any]) -> str:
    """Returns a page that shows `document` and sends requests; it loads nothing from elsewhere."""
    schemas = document["components"]["schemas"]
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    shapes = "".join(
        f"<h3>{name}</h3><pre>{_pretty(value)}</pre>" for name, value in schemas.items()
    )
    return PAGE.format(
        title=html.escape(document["info"]["title"]),
        description=html.escape(document["info"]["description"]),
        operations=f"{operations}<details><summary>Shapes</summary>{shapes}</details>",
        example=html.escape(json.dumps(schemas["Request"]["examples"][0])),
    )


def _operation(method: str, path: str, operation: Schema) -> str:
    answers = "".join(
        f"<li><b>{code}</b> {html.escape(answer['description'])}</li>"
        for code, answer in operation["responses"].items()
    )
    heading = f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
    return f"{heading}<p>{html.escape(operation['summary'])}</p><ul>{answers}</ul>"


def _pretty(value: Any) -> str:
    return html.escape(json.dumps(value, indent=1))
