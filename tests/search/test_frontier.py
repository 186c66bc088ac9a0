import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.files import write_json
from recsys.search.frontier import require_points


def test_what_is_no_point_is_told_before_a_search(tmp_path, dataset):
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    for path in (student, teacher):
        path.mkdir()
        write_json(path / "report.json", {"validation": {"ndcg@10": 0.5}})
        shutil.copy(dataset.path / "items.parquet", path)
    with pytest.raises(ValueError, match=r"student has no graph .* leave it out of --models"):
        require_points([student], teacher, dataset)
    (student / "model.onnx").touch()
    require_points([student], teacher, dataset)
    write_json(teacher / "report.json", {"ndcg@10": 0.5})
    with pytest.raises(ValueError, match=r"teacher/report.json has no metrics on validation"):
        require_points([student], teacher, dataset)
    with pytest.raises(ValueError, match=r"gone/report.json does not exist"):
        require_points([tmp_path / "gone"], teacher, dataset)
    write_json(teacher / "report.json", {"validation": {"ndcg@10": 0.5}})
    pq.write_table(pa.table({"item_id": [None, "another"]}), student / "items.parquet")
    with pytest.raises(ValueError, match=r"student and .* have different items"):
        require_points([student], teacher, dataset)
