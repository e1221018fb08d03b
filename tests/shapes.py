"How annotations are checked while pytest runs: by beartype, to whom an int is a float and `Self` is anything, once for each form of a call. Checks take longer than a small layer, and of the same call they say the same."
from functools import wraps
from types import FunctionType
from typing import Self

import jaxtyping
import torch
from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object})))
always = jaxtyping.jaxtyped


def form(x):
    "What the shapes of a call depend on: those of its tensors, its whole numbers and words, which layer it is; of all else the type."
    if isinstance(x, torch.Tensor): return type(x), x.dtype, x.shape
    if isinstance(x, (tuple, list)): return type(x), *map(form, x)
    if isinstance(x, dict): return tuple((k, form(v)) for k, v in x.items())
    if isinstance(x, torch.nn.Module): return id(x)
    return (type(x), x) if isinstance(x, (int, str)) else type(x)


def jaxtyped(*, typechecker):
    "`jaxtyping.jaxtyped` as modules are decorated with it; a function goes past it when a call of this form has passed before."
    def decorated(function):
        strict, passed = always(function, typechecker=typechecker), set()
        if not isinstance(function, FunctionType): return strict
        @wraps(function)
        def call(*args, **named):
            if (now := form((args, named))) in passed: return function(*args, **named)
            out = strict(*args, **named)
            passed.add(now)
            return out
        return call
    return decorated


def install(modules):
    "From now on, check the functions of some modules when they are imported."
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(modules, "shapes.checked")
