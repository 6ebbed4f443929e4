"""The one contract of the library: a layer is a pair of pure functions.

``init(key, x) -> (params, state)`` reads only the shapes and dtypes of ``x``; ``apply(params, state, x, *, key=None,
training=False) -> (y, state)`` computes. Both return new values and change none. Everything else in this module serves
that pair: how children are named, how each gets a key of its own, how side inputs travel past layers that act on
arrays, and how an error says where in the network it happened.
"""

import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import jax
import jax.numpy as jnp

Tree = Any
"""A pytree of arrays: nested dicts, tuples, lists, named tuples."""


class Layer(NamedTuple):
    """A pure ``init``/``apply`` pair, with what is needed to name and draw it.

    ``init(key, x) -> (params, state)``: ``x`` is an array, a ``jax.ShapeDtypeStruct`` or a pytree of them.
    ``apply(params, state, x, *, key=None, training=False) -> (y, state)``: ``training`` is a static Python bool.
    ``params`` (trained) and ``state`` (running averages, caches) are nested dicts of arrays, ``{}`` where there are
    none.

    ``kind`` names the family (``"dense"``), ``name`` is what ``named`` gave, and ``children`` holds ``(name, layer)``
    pairs from which ``repr`` draws the tree. A layer is a tuple of functions, not of arrays: close over it, do not
    pass it to ``jit``.
    """

    init: Callable[..., tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]
    kind: str
    name: str | None = None
    children: tuple[tuple[str, "Layer"], ...] = ()

    def __repr__(self) -> str:
        return "\n".join(_drawn(self.name or self.kind, self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, and say what was probably meant."""
        raise TypeError(
            f"{self.kind}: a layer is a value and is not called, got {self.kind}(...); "
            f"write it without parentheses where a layer is meant, or layer.apply(params, state, x) to compute"
        )


def _drawn(label: str, layer: Layer) -> list[str]:
    lines = [label if label.startswith(layer.kind) else f"{label}: {layer.kind}"]
    for i, (name, child) in enumerate(layer.children):
        last = i == len(layer.children) - 1
        head, *rest = _drawn(name, child)
        lines.append(("└── " if last else "├── ") + head)
        lines.extend(("    " if last else "│   ") + line for line in rest)
    return lines


# ---- specs: what init reads of its input -----------------------------------------------------------------------------


def spec(x: Tree) -> Tree:
    """The shapes and dtypes of a pytree as ``jax.ShapeDtypeStruct``, with the dtypes that JAX would compute in."""

    def leaf(a: Any) -> jax.ShapeDtypeStruct:
        shape, dtype = (a.shape, a.dtype) if hasattr(a, "dtype") else (jnp.shape(a), jnp.asarray(a).dtype)
        if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jax.ShapeDtypeStruct(shape, dtype)

    return jax.tree.map(leaf, x)


def param_dtype(x: Any) -> Any:
    """The dtype of the weights for an input: float64 where the input is float64 (x64), float32 otherwise."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def shown(x: Tree) -> str:
    """The shapes of a pytree as they appear in an error: ``(32, 7)`` or ``{'mask': (32,), 'x': (32, 7)}``."""
    return str(jax.tree.map(jnp.shape, x)) if not hasattr(x, "shape") else str(tuple(x.shape))


# ---- keys ------------------------------------------------------------------------------------------------------------


def expect_key(where: str, key: Any) -> None:
    """Raise a ``TypeError`` unless ``key`` is one typed JAX key, and say how to make one."""
    fix = "pass jax.random.key(0)"
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return
        got, fix = f"an array of {key.shape} keys", "use one of them, or jax.vmap over them"
    elif hasattr(key, "dtype"):
        got = f"a raw array {key.dtype}{tuple(key.shape)}"
        fix += ", or jax.random.wrap_key_data(key) for an old-style key"
    else:
        got = f"{type(key).__name__} {key!r}"
    raise TypeError(f"{where}: expected a JAX key, got {got}; {fix}")


def child_key(key: Any, name: str) -> Any:
    """The key of a child: the parent's, folded with the checksum of the child's name, so that no sibling changes it."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


# ---- names -----------------------------------------------------------------------------------------------------------


def expect_layer(where: str, layer: Any) -> None:
    """Raise a ``TypeError`` unless ``layer`` is a ``Layer``, and say what was probably meant."""
    if isinstance(layer, Layer):
        return
    if callable(layer):
        name = getattr(layer, "__name__", type(layer).__name__)
        package, _, home = str(getattr(layer, "__module__", "")).partition(".")
        if package == "funcnn":
            home = home.partition(".")[0]
            raise TypeError(f"{where}: expected a layer, got the factory {name}; call it: {home}.{name}(...)")
        raise TypeError(f"{where}: expected a layer, got the function {name}; wrap it: layers.function({name})")
    kind = type(layer).__name__
    got, advice = f"{kind} {layer!r}"[:60], "pass layers such as layers.dense(10)"
    if type(layer) in (list, tuple):
        advice = "unpack it: *layers"
    elif isinstance(layer, tuple):
        got, advice = f"a record {kind}", "pass the model itself"
    raise TypeError(f"{where}: expected a layer, got {got}; {advice}")


def expect_name(where: str, name: Any) -> None:
    """Raise unless ``name`` can stand in a path such as ``encoder/dense_0/kernel``."""
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected a name, got {type(name).__name__}; pass a string")
    if not name or "/" in name:
        raise ValueError(
            f"{where}: expected a name that is not empty and has no '/', got {name!r}; '/' separates paths"
        )


def named_children(where: str, layers: Sequence[Any]) -> tuple[tuple[str, Layer], ...]:
    """Pair each layer with its name: the one ``named`` gave, else its kind and the count of that kind so far."""
    counts: dict[str, int] = {}
    pairs: list[tuple[str, Layer]] = []
    for layer in layers:
        expect_layer(where, layer)
        if layer.name is not None:
            name = layer.name
        else:
            name = f"{layer.kind}_{counts.get(layer.kind, 0)}"
            counts[layer.kind] = counts.get(layer.kind, 0) + 1
        expect_name(where, layer.kind if layer.name is None else layer.name)
        if name in dict(pairs):
            raise ValueError(
                f"{where}: expected different names, got {name!r} twice; give one another name: named(...)"
            )
        pairs.append((name, layer))
    return tuple(pairs)


# ---- side inputs -----------------------------------------------------------------------------------------------------


def features(where: str, x: Any) -> Any:
    """The features of an input: the entry ``"x"`` of a dict with side inputs, or the input itself."""
    if not isinstance(x, dict):
        return x
    if "x" not in x:
        raise ValueError(
            f"{where}: expected the features under 'x', got a dict with {sorted(map(str, x))}; rename the entry"
        )
    return x["x"]


def with_features(x: Any, y: Any) -> Any:
    """``y`` in the place of the features of ``x``, the side inputs handed on."""
    return {**x, "x": y} if isinstance(x, dict) else y


def array_layer(
    init: Callable[..., tuple[Tree, Tree]],
    apply: Callable[..., tuple[Any, Tree]],
    kind: str,
    params: Sequence[str] | None = None,
    state: Sequence[str] = (),
) -> Layer:
    """A layer from a pair that acts on one array: lifted over side inputs, its key and its input checked.

    ``params`` and ``state`` name the entries that ``init`` makes: ``apply`` then gets these and no others. Without
    ``params`` this is not checked.
    """
    made = () if params is None else (("params", params), ("state", state))

    def lifted_init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key(f"{kind}.init", key)
        return init(key, _one_array(kind, spec(features(kind, x))))

    def lifted_apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        array = jnp.asarray(_one_array(kind, features(kind, x)))
        for (what, names), given in zip(made, (params, state), strict=False):
            expect_entries(kind, what, given, names)
        y, state = apply(params, state, array, key=key, training=training)
        return with_features(x, y), state

    return Layer(lifted_init, lifted_apply, kind)


def expect_entries(where: str, what: str, given: Any, names: Sequence[str]) -> None:
    """Raise unless ``given``, the params or the state of a layer, is a dict with entries of these names."""
    if isinstance(given, dict) and set(given) == set(names):
        return
    got = str(sorted(map(str, given))) if isinstance(given, dict) else f"a {type(given).__name__}"
    expected = f"{what} with {sorted(names)}" if names else f"no {what}"
    raise ValueError(f"{where}: expected {expected}, got {got}; pass the {what} that init of this very model returned")


def _one_array(kind: str, x: Any) -> Any:
    if isinstance(x, list):
        raise TypeError(f"{kind}: expected an array, got a list; convert it: jnp.asarray(x)")
    if isinstance(x, (tuple, dict)):
        raise TypeError(
            f"{kind}: expected one array, got a {type(x).__name__} of shapes {shown(x)}; "
            f"send each element through a layer of its own with parallel, or join them with concatenate"
        )
    return x


# ---- children: scopes, notes, the two walks --------------------------------------------------------------------------


class _Note(str):
    """The note that an error gains on its way out: ``encoder / dense_1: input (32, 7)``."""

    __slots__ = ()


@contextmanager
def located(name: str, x: Any) -> Generator[None]:
    """Run a child under its name: in the jaxpr as a scope, in an error as one note that grows into the whole path."""
    try:
        with jax.named_scope(name):
            yield
    except Exception as error:
        notes: list[str] = getattr(error, "__notes__", [])
        for i, note in enumerate(notes):
            if isinstance(note, _Note):
                notes[i] = _Note(f"{name} / {note}")
                break
        else:
            error.add_note(_Note(f"{name}: input {shown(x)}"))
        raise


def child_init(name: str, layer: Layer, key: Any, x: Any) -> tuple[Tree, Tree, Any]:
    """The params and the state of a child, from the key of its parent, and the spec of what it makes of ``x``."""
    with located(name, x):
        params, state = layer.init(child_key(key, name), x)
        return params, state, output_spec(layer, params, state, x)


def output_spec(layer: Layer, params: Tree, state: Tree, x: Any) -> Any:
    """The shapes and dtypes of what a layer makes of ``x``; no layer computes them by hand."""
    try:
        made = jax.eval_shape(_for_shapes(layer.apply), params, state, x)
    except Exception:  # once more, for an error that says whose it is
        return jax.eval_shape(lambda p, s, a: _expect_pair(layer, _alone(layer.apply, p, s, a))[0], params, state, x)
    return _expect_pair(layer, made)[0]


_SHAPES_ALONE: ContextVar[bool] = ContextVar("shapes_alone", default=False)
_FOR_SHAPES: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()


def _for_shapes(apply: Callable[..., Any]) -> Callable[..., Any]:
    """One function for each ``apply``: what JAX has traced of it is found again, and not by ``jit`` of ``apply``."""
    try:
        if apply not in _FOR_SHAPES:
            there = ref(apply)
            _FOR_SHAPES[apply] = lambda *given: _alone(there(), *given)
        return _FOR_SHAPES[apply]
    except TypeError:  # no hash, or nothing that a reference can be had to
        return lambda *given: _alone(apply, *given)


def _alone(apply: Any, *given: Any) -> Any:
    before = _SHAPES_ALONE.set(True)
    try:
        return apply(*given)
    finally:
        _SHAPES_ALONE.reset(before)


def asks_for_shapes_alone() -> bool:
    """Whether ``apply`` is traced for ``init``, with what it begins with: in ``mixed_precision`` not yet in half."""
    return _SHAPES_ALONE.get()


def _expect_pair(layer: Layer, made: Any) -> tuple[Any, Tree]:
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict):
        return made
    parts = " of " + ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else ""
    got = f"an array of shape {shown(made)}" if hasattr(made, "shape") else f"a {type(made).__name__}{parts}"
    raise TypeError(
        f"{layer.kind}: expected (y, state) from apply of {layer.name or layer.kind}, got {got}; "
        f"return both, the state as a dict: {{}} where there is none"
    )


def composite(
    kind: str,
    children: tuple[tuple[str, Layer], ...],
    route: Callable[[Callable[[str, Any], Any], Any], Any],
    combine: Callable[[Any, Any], Any] = lambda x, outputs: outputs,
    *,
    computes: bool = False,
) -> Layer:
    """A layer made of layers: the one place where children are walked.

    ``route(call, x) -> outputs`` says which child gets what: ``call(name, a)`` runs one child. ``init`` walks it with
    specs in place of arrays, so it must not compute, unless ``computes`` says that it does: then ``init`` traces it
    once, with zeros that nobody computes. ``combine(x, outputs) -> y`` computes. A child that is called twice shares
    its params and threads its state, and has another key each time.
    """
    layers = dict(children)

    def initial(key: Any, x: Any) -> tuple[Tree, Tree]:
        params: dict[str, Tree] = {}
        states: dict[str, Tree] = {}

        def call(name: str, a: Any) -> Any:
            if name in params:
                with located(name, a):
                    made = output_spec(layers[name], params[name], states[name], a)
            else:
                params[name], states[name], made = child_init(name, layers[name], key, a)
            return zeros_of(made) if computes else made

        route(call, zeros_of(x) if computes else x)
        _expect_called(kind, params, layers)
        return _without_empty(params), _without_empty(states)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key(f"{kind}.init", key)
        x = spec(x)
        return _traced(kind, lambda k: initial(k, x), key) if computes else initial(key, x)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        expect_children(kind, params, state, layers, key)
        states = dict(state)
        calls: dict[str, int] = {}

        def call(name: str, a: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            # No name has a "/" in it: the key of a second call is that of no other child.
            label = name if calls[name] == 1 else f"{name}/{calls[name]}"
            with located(name, a):
                made = layers[name].apply(
                    params.get(name, {}), states.get(name, {}), a, key=child_key(key, label), training=training
                )
                y, states[name] = _expect_pair(layers[name], made)
                return y

        y = combine(x, route(call, x))
        return y, _without_empty(states)

    return Layer(init, apply, kind, children=children)


def _traced(kind: str, initial: Callable[[Any], tuple[Tree, Tree]], key: Any) -> tuple[Tree, Tree]:
    """``initial(key)``, compiled, so that what it computes on the way is left away: only params and state come out."""
    try:
        return jax.jit(initial)(key)
    except jax.errors.UnexpectedTracerError:
        raise ValueError(
            f"{kind}: expected the first call of each child outside of loops and branches, got one inside a function "
            f"that JAX traces, such as the body of a scan; call it before, or use repeat or shared"
        ) from None


def zeros_of(specs: Tree) -> Tree:
    """Arrays of zeros of the shapes and dtypes of ``specs``."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), specs)


def expect_children(kind: str, params: Any, state: Any, children: dict[str, Layer], key: Any = None) -> None:
    """Raise unless params and state are dicts with entries for these children, and the key, if any, is typed."""
    if key is not None:
        expect_key(f"{kind}.apply", key)
    _expect_no_others(kind, "params", params, children)
    _expect_no_others(kind, "state", state, children)


def _expect_called(kind: str, called: dict[str, Any], children: dict[str, Layer]) -> None:
    left = sorted(set(children) - set(called))
    if left:
        raise ValueError(f"{kind}: expected every child to be called, got none for {left}; call it, or leave it out")


def _without_empty(entries: dict[str, Tree]) -> dict[str, Tree]:
    return {name: tree for name, tree in entries.items() if jax.tree.leaves(tree)}


def _expect_no_others(where: str, what: str, given: Any, children: dict[str, Layer]) -> None:
    if not isinstance(given, dict):
        raise TypeError(f"{where}: expected {what} as a dict, got {type(given).__name__}; pass what init returned")
    unknown = sorted(set(given) - set(children))
    if unknown:
        raise ValueError(
            f"{where}: expected {what} for {sorted(children)}, got {unknown} as well; "
            f"pass the {what} that init of this very model returned"
        )
