"""Write docs/configuration.md: every key of a config, its type, default and meaning, from src/ich/config/.

python docs/configuration.py
"""

import ast
import inspect
import json
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from ich import config, files

HEAD = """# Configuration

<!-- Generated from src/ich/config/ by `make docs`: edit there. -->

A config is a YAML file of the sections below; a key that is left out has its default. Unknown keys are refused, by
name. `--set section.key=value` overrides one value for the stages that use it (`--help` lists them). The resolved
config, defaults written out, goes into the run's directory as `config.yaml`. Examples: [configs/](../configs).
"""


TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def meanings(section: type) -> dict[str, str]:
    """The comment above each key, as one line."""
    lines = inspect.getsource(section).splitlines()
    comments = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip().removeprefix("#").strip())
            comments[node.target.id] = " ".join(above)
    return comments


def values(schema: dict, definitions: dict) -> str:
    """The values that a key takes, of its JSON schema."""
    if "$ref" in schema:
        keys = definitions[schema["$ref"].rpartition("/")[2]]["properties"]
        return f"{{{', '.join(keys)}}}"
    for union in schema.keys() & {"anyOf", "oneOf"}:
        return " or ".join(values(member, definitions) for member in schema[union])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {values(schema['items'], definitions)}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limit = ", ".join(f"{sign} {schema[key]}" for key, sign in limits.items() if key in schema)
    kind = "path" if schema.get("format") == "path" else TYPES[schema["type"]]
    return f"{kind} {limit}".rstrip()


def table(section: type) -> str:
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    meaning, schema = meanings(section), section.model_json_schema()
    for key, field in section.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        takes = values(schema["properties"][key], schema.get("$defs", {}))
        rows.append(f"| `{key}` | {takes} | {default} | {meaning[key]} |")
    return "\n".join(rows)


def described(title: str, section: type) -> list[str]:
    """A section's heading, introduction and table, and those of the sections that are the values of its keys."""
    intro = f"{inspect.cleandoc(section.__doc__)}\n\n" if section.__dict__.get("__doc__") else ""
    parts = [f"## {title}\n\n{intro}{table(section)}\n"]
    for key, field in section.model_fields.items():
        inner = [kind for kind in get_args(field.annotation) if inspect.isclass(kind) and issubclass(kind, BaseModel)]
        parts += [part for section_within in inner for part in described(f"{title}.{key}", section_within)]
    return parts


def page() -> str:
    """The page as Markdown."""
    sections = [HEAD]
    for name, field in config.Config.model_fields.items():
        if name == "name":
            sections.append(f"## name\n\n{meanings(config.Config)['name']}\n")
        else:
            sections += described(name, field.annotation)
    return "\n".join(sections)


def main() -> None:
    with files.replacing(Path(__file__).with_suffix(".md")) as temporary:
        temporary.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
