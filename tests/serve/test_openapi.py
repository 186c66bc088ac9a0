import jsonschema
import pytest
from jsonschema import Draft202012Validator

from recsys.serve.openapi import docs_page, openapi_document
from recsys.serve.schema import Limits

DOCUMENT = openapi_document(Limits(max_k=50), num_items=30)
SCHEMAS = DOCUMENT["components"]["schemas"]


def validate(value, name: str) -> None:
    schema = {**DOCUMENT, "$ref": f"#/components/schemas/{name}"}
    jsonschema.validate(value, schema, cls=Draft202012Validator)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_every_shape_is_a_schema(name):
    Draft202012Validator.check_schema(SCHEMAS[name])


def test_the_example_is_a_request():
    validate(SCHEMAS["Request"]["examples"][0], "Request")


@pytest.mark.parametrize(
    "request_body",
    [{}, {"histories": []}, {"histories": [[1.5]]}, {"histories": [[]], "k": 31}, {"k": 1}],
)
def test_rubbish_is_none(request_body):
    with pytest.raises(jsonschema.ValidationError):
        validate(request_body, "Request")


def test_seen_items_are_offered_where_they_are_scored():
    def flag(scores_seen):
        document = openapi_document(Limits(), num_items=30, scores_seen=scores_seen)
        return document["components"]["schemas"]["Request"]["properties"]["exclude_seen"]

    assert "const" not in flag(True)
    assert flag(False)["const"] is True


def test_the_page_names_every_path_and_loads_nothing_from_elsewhere():
    page = docs_page(DOCUMENT)
    assert all(path in page for path in DOCUMENT["paths"])
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page
