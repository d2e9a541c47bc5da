"""Policies for the numbers that layers work with, by Keras's names.

    pyconv.mixed_precision.set_global_policy("mixed_bfloat16")

Layers made from then on take their inputs, kernels and biases rounded to bfloat16, and round their
outputs and the gradients of these. Sums are float32, as are the weights that are trained and their
gradients, the statistics of batch normalization, softmax and the losses. So a network is trained,
or applied, as it will be where arithmetic is bfloat16. It is seldom faster: kernels multiply
float32, but for some on processors with AVX512-BF16, to the same bits (docs/performance.md).
"""

from __future__ import annotations

from typing import Any, Union

_NAMES = ("float32", "mixed_bfloat16")


class DTypePolicy:
    """The dtypes of a layer.

    Args:
        name: "float32", or "mixed_bfloat16" for float32 weights that are rounded to bfloat16 where
            the layer computes.

    Attributes:
        name: as given.
        compute_dtype: "float32" or "bfloat16".
        variable_dtype: "float32", that of the weights.

    Raises:
        ValueError: if `name` is not one of the two.

    Example:
        >>> DTypePolicy("mixed_bfloat16").compute_dtype
        'bfloat16'
    """

    variable_dtype = "float32"

    def __init__(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(
                f"A policy must be {' or '.join(map(repr, _NAMES))}. Received: {name!r}"
            )
        self.name = name
        self.compute_dtype = name.removeprefix("mixed_")

    def get_config(self) -> dict[str, str]:
        """Returns the constructor's arguments."""
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, str]) -> DTypePolicy:
        """Creates a policy from what :meth:`get_config` returned."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTypePolicy) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<DTypePolicy {self.name!r}>"


Policy = DTypePolicy

_global = DTypePolicy("float32")


def get(policy: Union[str, DTypePolicy, dict[str, Any], None]) -> DTypePolicy:
    """The policy of that name, or as Keras's configurations describe it; None means the global one.

    Raises:
        ValueError: if there is no such policy.
    """
    if policy is None:
        return _global
    if isinstance(policy, DTypePolicy):
        return policy
    if isinstance(policy, dict):
        config = policy.get("config")
        policy = config.get("name") if isinstance(config, dict) else None
    return DTypePolicy(policy)  # type: ignore[arg-type]  # which checks it


def set_global_policy(policy: Union[str, DTypePolicy]) -> None:
    """Sets the policy of layers that are made from now on without a `dtype` of their own.

    Args:
        policy: a policy or its name.

    Raises:
        ValueError: if there is no such policy.
    """
    global _global
    _global = DTypePolicy("float32") if policy is None else get(policy)


def global_policy() -> DTypePolicy:
    """Returns the policy of layers without a `dtype`; "float32" unless one was set."""
    return _global


set_dtype_policy = set_global_policy
dtype_policy = global_policy

__all__ = [
    "DTypePolicy",
    "Policy",
    "dtype_policy",
    "get",
    "global_policy",
    "set_dtype_policy",
    "set_global_policy",
]
