"""Specs: one object of a catalogue table with some of its fields set, written as NAME or NAME:field=value,field=value.

The fields of a nested settings object (temperature of `sampling`) are set by their own names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from ponder.core.errors import BadField, UnknownName

Tables = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Specs:
    """Reads specs of one table. parts: field name -> table of the objects that the field takes."""

    kind: str  # for messages: "strategy"
    table: Mapping[str, object]
    parts: Tables

    def read(self, text: str) -> object:
        """The object. Raises UnknownName (near names listed) or BadField for anything it cannot honour."""
        name, _, rest = text.strip().partition(":")
        if name not in self.table:
            raise UnknownName(self.kind, name, self.table)
        found = self.table[name]
        texts: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            field, equals, value = (p.strip() for p in part.partition("="))
            if not equals:
                raise BadField(f"{self.kind} {text!r}: {part!r} is not field=value, as in {name}:num=8")
            if field not in self.settable(found):
                raise UnknownName(f"field of {self.kind} {name}", field, self.settable(found))
            texts[field] = value
        return self._set(name, found, texts)

    def read_many(self, text: str) -> dict[str, object]:
        """{spec: object} for 'a,b,c' or, where specs have fields, 'a;b:x=1,y=2;c'."""
        separator = ";" if ";" in text or ":" in text else ","
        specs = [s.strip() for s in text.split(separator) if s.strip()]
        if not specs:
            raise BadField(f"no {self.kind} in {text!r}; name at least one of {', '.join(sorted(self.table))}")
        return {spec: self.read(spec) for spec in specs}

    def settable(self, found: object) -> dict[str, object]:
        """Field name -> present value, nested settings included."""
        flat: dict[str, object] = {}
        for f in fields(found):  # type: ignore[arg-type]
            value = getattr(found, f.name)
            if is_dataclass(value) and f.name not in self.parts:
                flat |= self.settable(value)
            else:
                flat[f.name] = value
        return flat

    def _set(self, name: str, found: Any, texts: Mapping[str, str]) -> object:
        """`found` with those fields set, all at once: they may be valid only together."""
        changes: dict[str, object] = {}
        for f in fields(found):
            present = getattr(found, f.name)
            if f.name in texts:
                changes[f.name] = self._value(name, f.name, texts[f.name], present=present, type_name=str(f.type))
            elif is_dataclass(present) and f.name not in self.parts:
                nested = {k: v for k, v in texts.items() if k in self.settable(present)}
                changes |= {f.name: self._set(name, present, nested)} if nested else {}
        return replace(found, **changes)

    def _value(self, name: str, field: str, text: str, *, present: object, type_name: str) -> object:
        """`text` as the type that the field has."""
        if field in self.parts:
            if text not in self.parts[field]:
                raise UnknownName(field, text, self.parts[field])
            return self.parts[field][text]
        if "tuple" in type_name:
            raise BadField(f"{self.kind} {name}: {field} holds several values and cannot be set from text; set it in Python")
        if text.lower() == "none" and "None" in type_name:
            return None
        if isinstance(present, bool) or "bool" in type_name:
            if text.lower() not in ("true", "false"):
                raise BadField(f"{self.kind} {name}: {field}={text!r} must be true or false")
            return text.lower() == "true"
        for kind in ("int", "float"):
            if re.search(rf"\b{kind}\b", type_name):
                try:
                    return int(text) if kind == "int" else float(text)
                except ValueError:
                    raise BadField(f"{self.kind} {name}: {field}={text!r} must be {'a whole number' if kind == 'int' else 'a number'}") from None
        return self._word(name, field, text, type_name)

    def _word(self, name: str, field: str, text: str, type_name: str) -> str:
        """A str field; where its type is a Literal, one of the words listed there."""
        words = re.findall(r"['\"]([^'\"]+)['\"]", type_name) if "Literal" in type_name else []
        if words and text not in words:
            raise UnknownName(f"{field} of {self.kind} {name}", text, words)
        if not words and not re.search(r"\bstr\b", type_name):
            raise BadField(f"{self.kind} {name}: {field} cannot be set from text; set it in Python")
        return text
