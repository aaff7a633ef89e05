"""Calls as one program: an array function run op by op compiles each of them."""

import functools

import jax

__all__ = ["whole"]


def whole(function):
    """The function, compiled anew in every call; what is no array is static."""

    @functools.wraps(function)
    def call(*args, **options):
        named = {f"argument {i}": value for i, value in enumerate(args)} | options
        given = {k: v for k, v in named.items() if isinstance(v, jax.Array)}

        def run(given):
            every = {**named, **given}
            first = [every.pop(f"argument {i}") for i in range(len(args))]
            return function(*first, **every)

        return jax.jit(run)(given)

    call.__wrapped__ = getattr(function, "__wrapped__", function)
    return call
