"How annotations are checked while pytest runs: by beartype, to whom an int is a float and `Self` is anything."
from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object})))
