"""What `config.json` says: from the settings of Hugging Face transformers to a host's Config and
back, and Configs of our own as JSON.

Facts of transformers that its config does not tell: the norm behind the mean of a VideoMAE, and the
last one of its decoder, have an epsilon of 1e-5 whatever `layer_norm_eps` says; without mean
pooling the head reads the first token; raw pixels are predicted in ImageNet's units.

Nothing is executed: a name in the file is looked up among the hosts and reducers that exist, values
must be of the type that their field has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from workloads import clips, decoder, reducers, sampling
from workloads.knobs import canonical, type_name
from workloads.mistakes import Mistake
from workloads.models import clip, fluxvit, videomae
from workloads.reducers import base

TORCH_EPS = 1e-5  # of a LayerNorm that nobody gave another
HostConfig = videomae.Config | clip.Config | fluxvit.Config
HOSTS: dict[str, type[HostConfig]] = {
    "videomae": videomae.Config,
    "clip": clip.Config,
    "fluxvit": fluxvit.Config,
}


class Fields:
    """What a JSON file says, each value checked as it is read.

    Args:
        values: the JSON object.
        source: which file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:  # Any: JSON
        self.values, self.source = values, source

    def count(self, name: str, usual: int) -> int:
        """Return a whole number above 0."""
        value = self.values.get(name, usual)
        if type(value) is not int or value < 1:
            raise self._wrong(name, value, "a whole number above 0")
        return value

    def side(self, name: str, usual: int) -> int:
        """Return the side of a square, given as one number or two."""
        value = self.values.get(name, usual)
        both = value if isinstance(value, list) else [value]
        if not both or len({*map(str, both)}) > 1 or type(both[0]) is not int or both[0] < 1:
            raise self._wrong(name, value, "the side of a square, in pixels")
        return int(both[0])

    def real(self, name: str, usual: float) -> float:
        """Return a finite number of 0 or more."""
        value = self.values.get(name, usual)
        if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
            raise self._wrong(name, value, "a number of 0 or more")
        return float(value)

    def flag(self, name: str, usual: bool) -> bool:
        """Return yes or no."""
        value = self.values.get(name, usual)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def one_of(self, name: str, known: tuple[Any, ...]) -> Any:  # Any: JSON
        """Return one of the values that are supported; the first is the usual one."""
        value = self.values.get(name, known[0])
        if value not in known:
            raise self._wrong(name, value, " or ".join(map(repr, known)))
        return value

    def triple(self, name: str, usual: tuple[float, ...]) -> tuple[float, float, float]:
        """Return a number a colour."""
        value = self.values.get(name, usual)
        try:
            red, green, blue = map(float, value)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(name, value, "three numbers") from None
        if not all(map(math.isfinite, (red, green, blue))):
            raise self._wrong(name, value, "three numbers")
        return red, green, blue

    def _wrong(self, name: str, value: Any, expected: str) -> Mistake:  # Any: JSON
        return Mistake(f"{self.source}: {name}={value!r} must be {expected}")


def videomae_of(fields: Fields) -> videomae.Config:
    """Return the host of a VideoMAE of transformers."""
    dim = fields.count("hidden_size", 768)
    fields.one_of("hidden_act", ("gelu",))
    fields.one_of("num_channels", (3,))
    by_mean = fields.flag("use_mean_pooling", True)
    return videomae.Config(
        dim=dim,
        depth=fields.count("num_hidden_layers", 12),
        heads=fields.count("num_attention_heads", 12),
        mlp_ratio=_ratio(fields.count("intermediate_size", 3072), dim),
        tubelet=fields.count("tubelet_size", 2),
        patch=fields.side("patch_size", 16),
        frames=fields.count("num_frames", 16),
        size=fields.side("image_size", 224),
        pool="mean" if by_mean else "first",
        norm_eps=fields.real("layer_norm_eps", 1e-12),
        pool_eps=TORCH_EPS if by_mean else 0.0,
        qv_bias=fields.flag("qkv_bias" if "qkv_bias" in fields.values else "qv_bias", True),
    )


def encoder_of(fields: Fields) -> videomae.Config:
    """Return the host of a pre-trained VideoMAE: it is fine-tuned with a mean, whatever pool its
    config names, for no token of it was trained to stand for a clip.
    """
    return dataclasses.replace(videomae_of(fields), pool="mean", pool_eps=TORCH_EPS)


def decoder_of(fields: Fields) -> decoder.Config:
    """Return the decoder of a VideoMAE of transformers."""
    dim = fields.count("decoder_hidden_size", 384)
    return decoder.Config(
        dim=dim,
        depth=fields.count("decoder_num_hidden_layers", 4),
        heads=fields.count("decoder_num_attention_heads", 6),
        mlp_ratio=_ratio(fields.count("decoder_intermediate_size", 1536), dim),
        norm_eps=fields.real("layer_norm_eps", 1e-12),
        last_eps=TORCH_EPS,
        encoder_norm=not fields.flag("use_mean_pooling", True),
        norm_pixels=fields.flag("norm_pix_loss", True),
        qv_bias=fields.flag("qkv_bias" if "qkv_bias" in fields.values else "qv_bias", True),
    )


def clip_of(fields: Fields) -> clip.Config:
    """Return the host of a CLIP image encoder of transformers."""
    dim = fields.count("hidden_size", 768)
    fields.one_of("num_channels", (3,))
    return clip.Config(
        dim=dim,
        depth=fields.count("num_hidden_layers", 12),
        heads=fields.count("num_attention_heads", 12),
        mlp_ratio=_ratio(fields.count("intermediate_size", 3072), dim),
        patch=fields.side("patch_size", 32),
        size=fields.side("image_size", 224),
        activation=fields.one_of("hidden_act", ("quick_gelu", "gelu")),
        norm_eps=fields.real("layer_norm_eps", 1e-5),
    )


def _ratio(hidden: int, dim: int) -> float:
    """Return the ratio of which int(dim * ratio) is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def is_transformers(config: HostConfig) -> bool:
    """Tell whether transformers has such a model with a head."""
    if not isinstance(config, videomae.Config):
        return False
    return config.positions == "flat" and config.pool in ("mean", "first")


def is_exact(config: videomae.Config) -> bool:
    """Tell whether the last norm has the epsilon that transformers gives it."""
    usual = TORCH_EPS if config.pool == "mean" else config.norm_eps
    return (config.pool_eps or config.norm_eps) == usual


def fields_of(config: videomae.Config) -> dict[str, Any]:  # Any: JSON
    """Return what transformers' config says of a host."""
    return {
        "model_type": "videomae",
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "tubelet_size": config.tubelet,
        "patch_size": config.patch,
        "num_frames": config.frames,
        "image_size": config.size,
        "num_channels": 3,
        "use_mean_pooling": config.pool == "mean",
        "layer_norm_eps": config.norm_eps,
        "qv_bias": config.qv_bias,
    }


# Configs as JSON.


def host_as_json(config: HostConfig) -> dict[str, Any]:  # Any: JSON
    """Return a host's Config as JSON."""
    kind = next(name for name, known in HOSTS.items() if isinstance(config, known))
    return {"kind": kind, **_values(config)}


def chain_as_json(chain: Iterable[base.Config]) -> list[dict[str, Any]]:  # Any: JSON
    """Return the reducers of a chain as JSON."""
    return [{"reducer": base.name_of(config), **_values(config)} for config in chain]


def host_of_json(value: Any, source: str) -> HostConfig:  # Any: JSON
    """Return the Config that `host_as_json` wrote."""
    kind, values = _named(value, "kind", tuple(HOSTS), f"{source}: host")
    found: HostConfig = _revived(HOSTS[kind], values, f"{source}: host")
    return found


def chain_of_json(value: Any, source: str) -> tuple[base.Config, ...]:  # Any: JSON
    """Return the reducers that `chain_as_json` wrote."""
    if not isinstance(value, list):
        raise Mistake(f"{source}: chain={value!r} must be a list of reducers")
    chain = []
    for entry in value:
        name, values = _named(entry, "reducer", reducers.available(), f"{source}: chain")
        chain.append(_revived(reducers.load(name).Config, values, f"{source}: {name}"))
    return tuple(chain)


def sampling_as_json(config: sampling.Config) -> dict[str, Any]:  # Any: JSON
    """Return what a saved model is shown as JSON."""
    return {**_values(config), "clip": _values(config.clip)}


def sampling_of_json(value: Any, source: str) -> sampling.Config:  # Any: JSON
    """Return the Config that `sampling_as_json` wrote."""
    if not isinstance(value, dict):
        raise Mistake(f"{source}={value!r} must be an object")
    found: sampling.Config = _revived(sampling.Config, value, source)
    return found


def of_canonical(value: Any, source: str) -> Any:  # Any: JSON; a Config of one of these kinds
    """Return the Config of a host, a reducer or a clip of which `knobs.canonical` made JSON."""
    of_reducers = (reducers.load(name).Config for name in reducers.available())
    kinds: dict[str, type] = {
        type_name(kind): kind for kind in (*HOSTS.values(), clips.Config, *of_reducers)
    }
    name, values = _named(value, "type", tuple(kinds), source)
    return _revived(kinds[name], values, source)


def _values(config: Any) -> dict[str, Any]:  # Any: a frozen dataclass; JSON
    return {f.name: canonical(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _named(
    value: Any, field: str, known: tuple[str, ...], source: str
) -> tuple[str, dict[str, Any]]:  # Any: JSON
    """Return the name that an entry gives in a field, and its other fields."""
    name = value.get(field) if isinstance(value, dict) else None
    if name not in known:
        raise Mistake(f"{source}: {field}={name!r} does not exist", f"one of {', '.join(known)}")
    return name, {key: one for key, one in value.items() if key != field}


def _revived(kind: type, values: Mapping[str, Any], source: str) -> Any:  # Any: a Config; JSON
    hints = get_type_hints(kind)
    if unknown := sorted({*values} - {*hints}):
        raise Mistake(f"{source}: no field {', '.join(unknown)}", "made by a later version?")
    return kind(
        **{name: _fitted(one, hints[name], f"{source}.{name}") for name, one in values.items()}
    )


def _fitted(value: Any, hint: Any, source: str) -> Any:  # Any: JSON, a type, the field's value
    """Return a value of JSON as the type of its field has it."""
    inner = get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _revived(hint, value, source)
    if get_origin(hint) is tuple and isinstance(value, list):
        of = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(of) == len(value):
            return tuple(_fitted(v, h, source) for v, h in zip(value, of, strict=True))
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in inner:
            return value
    elif (hint is float and type(value) in (int, float)) or type(value) is hint:
        return hint(value)
    raise Mistake(f"{source}={value!r} is of another type than its field")
