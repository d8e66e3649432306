"""A class of settings as a list."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mhimdist.config.fields import Hidden, Inline, Positional, settings_of
from mhimdist.config.train import TrainConfig
from mhimdist.search.options import Sweep


class Inner(BaseModel):
    size: int = Field(3, ge=2, lt=9, description="size of it")


class Outer(BaseModel):
    place: Annotated[Path, Positional("DIR")] = Field(description="where")
    inner: Annotated[Inner, Inline()] = Inner(size=4)
    kind: Literal["a", "b"] | None = Field(None, description="kind; none: neither")
    secret: Annotated[int, Hidden()] = 1
    shown: bool = Field(False, alias="json", description="as JSON")


def test_a_list_says_names_kinds_defaults_and_ranges():
    by_name = {setting.name: setting for setting in settings_of(Outer, {"kind": "b"})}
    assert list(by_name) == ["place", "inner", "inner.size", "kind", "json"]
    assert by_name["place"].is_required
    assert by_name["place"].is_path
    size = by_name["inner.size"]
    assert (size.option, size.default, size.range) == ("--size", 4, "at least 2 and below 9")
    kind = by_name["kind"]
    assert (kind.default, kind.choices, kind.is_optional, kind.metavar) == ("b", ("a", "b"), True, "a|b")
    assert by_name["json"].is_flag


def test_variants_are_shown_once_with_the_defaults_of_the_one_that_is_chosen():
    base = TrainConfig().override({"model.name": "transmil", "model.hidden_dim": 64})
    by_name = {setting.name: setting for setting in settings_of(Sweep, {"train": base})}
    width = by_name["train.model.hidden_dim"]
    assert (width.default, width.variants) == (64, ())
    assert by_name["train.model.num_landmarks"].variants == ("transmil",)
    assert by_name["train.model.name"].default == "transmil"
    assert set(by_name["train.model.name"].choices) >= {"abmil", "clam_mb", "max_pooling"}
    assert by_name["trial_timeout_s"].metavar == "X|auto|off"
    assert by_name["seeds"].metavar == "N,N,..."
    assert by_name["train.masking.high"].is_group
