"""What pictures show: the data of their lines, images, labels and marks; no pixels."""

import ast
import re
import runpy
import struct
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import funcnn
from funcnn import layers, losses, metrics, plotting, training, trees
from funcnn.plotting import styles
from funcnn.plotting.landscapes import _directions
from funcnn.training import Result, Sweep


@pytest.fixture
def random():
    """The same numbers for every test."""
    return np.random.default_rng(0)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plotting: expected matplotlib, .*pip install 'funcnn\[plots\]'"):
        plotting.history({"loss": np.ones(3)})


def line(axes, label):
    (found,) = [each for each in axes.get_lines() if each.get_label() == label]
    return np.asarray(found.get_ydata(), float)


def legend(axes):
    return axes.get_legend_handles_labels()[1]


def ticks(axes, along):
    return [label.get_text() for label in (axes.get_xticklabels() if along == "x" else axes.get_yticklabels())]


def painted(figure):
    """Laid out to the end: what does not fit shows as a warning, which is an error."""
    figure.draw_without_rendering()
    return figure


# ---- all of them -----------------------------------------------------------------------------------------------------

COUNTS = np.array([[5.0, 1.0], [0.0, 4.0]])
X = np.array([[0.0, 0.0], [1.0, 2.0], [-1.0, 1.0]])
SWEEP = Sweep(
    {"rate": np.array([0.1, 0.1, 1.0, 1.0]), "width": np.array([1, 2, 1, 2])},
    np.zeros(4, int),
    None,
    Result(None, {"loss": np.array([[4.0, 1.0], [4.0, 2.0], [4.0, 3.0], [4.0, np.nan]])}),
)
ALL = {
    "activations": lambda: plotting.activations([layers.relu]),
    "attention": lambda: plotting.attention(np.full((2, 3, 3), 1 / 3)),
    "confusion_matrix": lambda: plotting.confusion_matrix(COUNTS),
    "decision_boundary": lambda: plotting.decision_boundary(lambda x: x.sum(axis=1), X, threshold=0.5),
    "filters": lambda: plotting.filters(np.ones((3, 3, 1, 4))),
    "histograms": lambda: plotting.histograms([{"a": np.arange(4.0)}]),
    "history": lambda: plotting.history({"loss": np.array([2.0, 1.0])}),
    "interpolation": lambda: plotting.interpolation(jnp.sum, jnp.zeros(2), jnp.ones(2)),
    "landscape": lambda: plotting.landscape(jnp.sum, jnp.ones((2, 2)), key=jax.random.key(0), resolution=4),
    "learning_rates": lambda: plotting.learning_rates(
        training.RateRange(np.array([0.1, 1.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), 0.5)
    ),
    "sweep_curves": lambda: plotting.sweep_curves(SWEEP, "loss"),
    "sweep_map": lambda: plotting.sweep_map(SWEEP, "loss", "rate", "width"),
}


def test_every_picture_is_in_these_tests():
    assert sorted(ALL) == plotting.__all__


def test_a_figure_is_returned_with_labelled_axes_and_nothing_is_shown_or_kept(monkeypatch):
    before = dict(matplotlib.rcParams)
    for name, draw in ALL.items():
        figure = draw()
        assert isinstance(figure, Figure), name
        assert figure._repr_png_().startswith(b"\x89PNG"), name  # in a notebook
        assert figure.canvas.manager is None, name  # no window, and no state of pyplot that holds it
        for axes in figure.axes:
            is_bar = axes.get_label() == "<colorbar>"
            assert axes.get_ylabel() or (name == "filters" and not is_bar), name
            assert axes.get_xlabel() or is_bar, name
    assert dict(matplotlib.rcParams) == before


def test_no_module_of_plotting_touches_pyplot():
    for path in Path(plotting.__file__).parent.glob("*.py"):
        assert "pyplot" not in path.read_text(encoding="utf-8"), path


def test_colours_differ_for_eyes_that_do_not_see_red_or_green():
    """Simulated after Viénot, Brettel and Mollon, 1999: no two colours of a palette fall together."""
    from matplotlib.colors import to_rgb

    lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    linear = np.array([to_rgb(colour) for colour in styles.COLOURS]) ** 2.2
    for blind in (protan, deutan):
        seen = np.clip(linear @ (np.linalg.inv(lms) @ blind @ lms).T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[~np.eye(len(seen), dtype=bool)].min() > 0.12
    white, black = styles.ink("#000000"), styles.ink("#FFFFFF")
    assert (white, black) == ("white", "black")


# ---- a run -----------------------------------------------------------------------------------------------------------

LOSS, HELD_OUT = np.array([3.0, 2.0, 1.0, 0.5]), np.array([3.5, 2.0, 2.5, 3.0])
ROWS = {"loss": LOSS, "validation_loss": HELD_OUT, "accuracy": LOSS / 4, "validation_accuracy": HELD_OUT / 5}


def test_the_history_shows_training_validation_and_the_best_epoch():
    figure = plotting.history(ROWS | {"confusion": np.ones((4, 2, 2))})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        np.testing.assert_array_equal(line(axes, "training"), ROWS[name])
        np.testing.assert_array_equal(line(axes, "validation"), ROWS[f"validation_{name}"])
        assert axes.get_xlabel() == "epoch"
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [1, 2, 3, 4])
        # The loss decides, in both pictures; the star is on the curve of validation.
        assert line(axes, "best epoch: 2") == [ROWS[f"validation_{name}"][1]]
        dashes = {each.get_label(): each.get_linestyle() for each in axes.get_lines()}
        assert dashes["training"] != dashes["validation"]


def test_what_is_best_may_be_said():
    (axes,) = plotting.history(ROWS, names=["accuracy"], monitor="validation_accuracy", mode="max").axes
    assert legend(axes) == ["training", "validation", "best epoch: 1"]
    (axes,) = plotting.history({"loss": LOSS}).axes
    assert legend(axes) == ["training"]  # the least training loss is no choice of anything
    (axes,) = plotting.history({"loss": LOSS}, monitor="loss").axes
    assert legend(axes)[-1] == "best epoch: 4"


def test_a_history_of_one_epoch_is_seen():
    (axes,) = painted(plotting.history({"loss": [2.0], "validation_loss": [1.0]})).axes
    for label in ("training", "validation"):
        (found,) = [each for each in axes.get_lines() if each.get_label() == label]
        assert found.get_marker() == "o"
        assert list(found.get_markevery()) == [0]
    assert axes.get_xlim() == (0.5, 1.5)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 1.5] == [1]


def test_what_is_not_finite_is_a_gap_and_a_cross_and_never_the_best():
    y = np.array([1.0, np.nan, 0.5, np.inf, 3.0, 2.0, -np.inf])
    (axes,) = plotting.history({"loss": y, "validation_loss": y}).axes
    np.testing.assert_array_equal(line(axes, "training"), [1.0, np.nan, 0.5, np.nan, 3.0, 2.0, np.nan])
    (crosses,) = [each for each in axes.get_lines() if each.get_label() == "not finite"]
    assert list(crosses.get_xdata()) == [2, 4, 7]
    assert "best epoch: 3" in legend(axes)
    # What stands alone has a dot, for no line leads to it.
    assert list(axes.get_lines()[0].get_markevery()) == [0, 2]
    (axes,) = plotting.history({"loss": LOSS, "validation_loss": LOSS * np.nan}).axes
    assert axes.get_title() == "no best epoch: validation_loss is nowhere finite"


def test_epochs_that_an_early_stop_left_out_are_not_there():
    rows = {"loss": np.array([3.0, 2.0, np.nan, np.nan]), "epochs_run": np.int32(2)}
    for given in (rows, Result(None, rows)):
        (axes,) = plotting.history(given).axes
        assert list(line(axes, "training")) == [3.0, 2.0]
        assert legend(axes) == ["training"]
        assert axes.get_xlim()[1] < 3


def test_the_run_of_a_trainer_is_drawn():
    x = jnp.linspace(-1, 1, 8)[:, None]
    trainer = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
    result = training.fit(trainer, (x, x), key=jax.random.key(0), epochs=3, validation=(x, x), progress=False)
    (axes,) = plotting.history(result).axes
    np.testing.assert_array_equal(line(axes, "training"), np.asarray(result.history["loss"], float))


def test_many_quantities_with_long_names_stand_in_rows():
    long = "a_very_long_name_of_a_metric/that_somebody_chose/for_reasons_of_his_own"
    figure = painted(plotting.history({f"{long}_{i}": LOSS for i in range(5)}))
    assert len(figure.axes) == 5
    names = [axes.get_ylabel() for axes in figure.axes]
    assert len(set(names)) == 5
    assert all(len(part) <= 28 for name in names for part in name.split("\n"))
    # Those that differ in their middle alone keep it.
    twins = ["a" * 40 + each + "b" * 40 for each in "xy"]
    assert [name.replace("\n", "") for name in styles.labels(twins)] == twins


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "expected a history with at least one epoch, got an empty one; train for an epoch first"),
        ({"loss": np.zeros(0)}, {}, r"got loss \(0,\); train"),
        ({"loss": np.ones((3, 4)), "epochs_run": np.ones(3)}, {}, "of many runs draw plotting.sweep_curves"),
        (ROWS, {"names": ["los"]}, "names of quantities, loss, accuracy, got 'los'"),
        (ROWS, {"names": ["validation_loss"]}, "each is drawn with its validation"),
        (ROWS, {"monitor": "validation_los"}, "loss, validation_loss, accuracy, validation_accuracy, got"),
        (ROWS, {"monitor": "validation_accuracy"}, "expected mode for 'validation_accuracy'"),
        (ROWS, {"mode": "max"}, "expected monitor, for mode is about it"),
        (ROWS, {"scale": "logarithmic"}, "scale to be one of"),
        ({"loss": LOSS - 1}, {"scale": "log"}, "numbers above 0 on a logarithmic scale, got one of -0.5"),
    ],
)
def test_a_history_that_cannot_be_drawn_is_refused(given, options, message):
    with pytest.raises(ValueError, match=rf"^plotting\.history: .*{message}"):
        plotting.history(given, **options)


def test_what_is_no_history_or_no_search_is_refused():
    with pytest.raises(TypeError, match="expected a Result or its history, got list"):
        plotting.history([1.0])
    with pytest.raises(TypeError, match="names as a sequence"):
        plotting.history(ROWS, names="loss")
    with pytest.raises(TypeError, match="expected a RateRange, got dict"):
        plotting.learning_rates({})


def test_a_search_whose_losses_go_bad_is_drawn_as_far_as_it_went():
    rates, bad = np.logspace(-3, 0, 30), np.where(np.arange(30) > 20, np.nan, np.linspace(3, 1, 30))
    (axes,) = painted(plotting.learning_rates(training.RateRange(rates, bad, bad, 0.01))).axes
    assert np.isfinite(axes.get_ylim()).all()
    with pytest.raises(ValueError, match="expected a finite loss at the first rates, got nan"):
        plotting.learning_rates(training.RateRange(rates, bad * np.nan, bad, 0.01))


# ---- a sweep ---------------------------------------------------------------------------------------------------------


def swept(grid, curves, epochs_run=None):
    rows = {"loss": curves} | ({} if epochs_run is None else {"epochs_run": epochs_run})
    return Sweep(grid, np.zeros(len(curves), int), None, Result(None, rows))


def test_the_curves_of_a_sweep_have_a_median_and_a_band(random):
    curves = random.random((11, 5))
    (axes,) = plotting.sweep_curves({"loss": curves}, "loss", quantiles=(0.25, 0.75)).axes
    np.testing.assert_allclose(line(axes, "median of 11"), np.median(curves, axis=0))
    band, members = axes.collections
    low, high = np.quantile(curves, (0.25, 0.75), axis=0)
    corners = band.get_paths()[0].vertices
    for epoch in range(1, 6):
        at = corners[corners[:, 0] == epoch, 1]
        np.testing.assert_allclose([at.min(), at.max()], [low[epoch - 1], high[epoch - 1]])
    np.testing.assert_allclose(np.stack([segment[:, 1] for segment in members.get_segments()]), curves)
    assert axes.figure.legends[0].texts[1].get_text() == "25 % to 75 %"
    assert axes.get_title() == "11 members"


def test_members_that_are_not_finite_or_far_away_are_counted(random):
    curves = random.random((200, 6))
    curves[3, 4:], curves[5, 2], curves[7, 3] = np.nan, np.inf, 1e9
    (axes,) = painted(plotting.sweep_curves({"loss": curves}, "loss")).axes
    assert axes.get_title() == "200 members, 2 not finite, 1 outside the picture"
    assert axes.get_ylim()[1] < 2
    known = np.where(np.isfinite(curves), curves, np.nan)
    np.testing.assert_allclose(line(axes, "median of 200"), np.nanmedian(known, axis=0))
    # Those that stopped early are none of them.
    stopped = curves.copy()
    stopped[:] = 0.5
    stopped[:3, 2:] = np.nan
    rows = {"loss": stopped, "epochs_run": np.r_[[2] * 3, [6] * 197]}
    assert plotting.sweep_curves(rows, "loss").axes[0].get_title() == "200 members"


def test_a_hyperparameter_gives_each_of_its_values_a_curve(random):
    curves = random.random((6, 4))
    found = swept({"rate": np.repeat([0.1, 0.01], 3)}, curves)
    (axes,) = plotting.sweep_curves(found, "loss", by="rate").axes
    assert legend(axes) == ["0.01", "0.1"]
    np.testing.assert_allclose(line(axes, "0.1"), np.median(curves[:3], axis=0))
    np.testing.assert_allclose(line(axes, "0.01"), np.median(curves[3:], axis=0))
    assert axes.figure.legends[0].get_title().get_text() == "rate"
    (axes,) = plotting.sweep_curves(found._replace(grid=np.repeat([1.0, 2.0], 3)), "loss", by="value").axes
    assert legend(axes) == ["1", "2"]
    # Too many for a legend.
    many = swept({"rate": np.logspace(-4, 0, 40)}, random.random((40, 4)))
    figure = plotting.sweep_curves(many, "loss", by="rate", scale="log")
    assert figure.axes[1].get_ylabel() == "rate"
    assert figure.axes[1].get_yscale() == "log"
    assert not figure.legends


def test_one_epoch_of_a_sweep_is_seen(random):
    curves = random.random((9, 1))
    (axes,) = painted(plotting.sweep_curves({"loss": curves}, "loss")).axes
    dots = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(dots[:, 1], curves[:, 0])
    assert axes.get_lines()[0].get_marker() == "o"


def test_the_map_of_a_sweep_has_the_mean_of_the_seeds_of_each_point(random):
    rates, widths = np.array([0.1, 1.0, 10.0]), np.array([8.0, 4.0])
    a, b, _ = (each.ravel() for each in np.meshgrid(rates, widths, [0, 1], indexing="ij"))
    curves = random.random((12, 3)) + 1
    curves[a + b == 9.0] *= 0.1
    curves[-1, -1] = np.nan
    figure = plotting.sweep_map(swept({"rate": a, "width": b}, curves), "loss", "rate", "width")
    axes = figure.axes[0]
    assert (ticks(axes, "x"), ticks(axes, "y")) == (["0.1", "1", "10"], ["4", "8"])
    table = np.asarray(axes.images[0].get_array())
    for i, width in enumerate((4.0, 8.0)):
        for j, rate in enumerate(rates):
            expected = curves[(a == rate) & (b == width), -1].mean()
            np.testing.assert_allclose(table[i, j], expected)
    assert np.isnan(table[0, 2])
    assert list(zip(*axes.get_lines()[0].get_data(), strict=True)) == [(2, 0)]  # the cross
    assert list(zip(*axes.get_lines()[1].get_data(), strict=True)) == [(1, 1)]  # and the ring around the best
    assert legend(axes) == ["not finite", "best"]
    assert axes.get_title() == "last epoch, mean of 2 seeds"
    assert figure.axes[1].get_ylabel() == "loss"
    assert len(axes.texts) == 5


def test_the_map_may_take_the_best_epoch_and_the_greatest_number():
    curves = np.array([[1.0, 5.0, 2.0], [4.0, np.nan, 3.0]])
    found = swept({"rate": np.array([1.0, 2.0]), "width": np.array([1.0, 1.0])}, curves)
    found = found._replace(result=Result(None, {"score": curves}))
    table = plotting.sweep_map(found, "score", "rate", "width", at="best", mode="max").axes[0]
    assert np.asarray(table.images[0].get_array()).tolist() == [[5.0, 4.0]]
    assert list(table.get_lines()[0].get_xdata()) == [0]
    last = plotting.sweep_map(found, "score", "rate", "width").axes[0]
    assert np.asarray(last.images[0].get_array()).tolist() == [[2.0, 3.0]]
    assert not last.get_lines()  # what is best was not said


def test_hyperparameters_drawn_at_random_are_dots(random):
    rates, momenta = 10 ** random.uniform(-4, 0, 30), random.random(30) + 1
    curves = random.random((30, 2))
    curves[4, 1] = np.nan
    axes = painted(plotting.sweep_map(swept({"rate": rates, "m": momenta}, curves), "loss", "rate", "m")).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    dots = axes.collections[0]
    at = {rate: value for (rate, _), value in zip(dots.get_offsets(), dots.get_array(), strict=True)}
    assert at == {rate: value for rate, value in zip(rates, curves[:, 1], strict=True) if np.isfinite(value)}
    assert list(axes.get_lines()[0].get_xdata()) == [rates[4]]


def test_other_hyperparameters_are_fixed_and_never_averaged_over():
    a, b, c = (each.ravel() for each in np.meshgrid([1.0, 2.0], [3.0, 4.0], np.float32([0.1, 0.2]), indexing="ij"))
    found = swept({"a": a, "b": b, "c": c}, np.arange(8.0)[:, None])
    with pytest.raises(ValueError, match=r"all hyperparameters on an axis or fixed, got several values of 'c'; fix it"):
        plotting.sweep_map(found, "loss", "a", "b")
    axes = plotting.sweep_map(found, "loss", "a", "b", fixed={"c": 0.2}).axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[1.0, 5.0], [3.0, 7.0]]
    assert axes.get_title() == "last epoch, one seed, c 0.2"
    with pytest.raises(ValueError, match=r"a value of 'c' that was tried, 0\.1, 0\.2, got 0\.3"):
        plotting.sweep_map(found, "loss", "a", "b", fixed={"c": 0.3})
    with pytest.raises(ValueError, match="two hyperparameters, neither of them fixed"):
        plotting.sweep_map(found, "loss", "a", "a")


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plotting.sweep_curves(SWEEP, "los"), ValueError, "member and epoch, loss, got 'los'; choose"),
        (lambda: plotting.sweep_curves({"loss": LOSS}, "loss"), ValueError, "of one run draw plotting.history"),
        (lambda: plotting.sweep_curves([1], "loss"), TypeError, "expected a Sweep, got list"),
        (lambda: plotting.sweep_curves({"loss": np.ones((2, 0))}, "loss"), ValueError, "at least one member"),
        (lambda: plotting.sweep_curves(SWEEP, "loss", by="rat"), ValueError, "rate, width, got 'rat'"),
        (lambda: plotting.sweep_curves(SWEEP.history, "loss", by="rate"), TypeError, "a Sweep, which knows 'rate'"),
        (lambda: plotting.sweep_curves(SWEEP, "loss", quantiles=(0.9, 0.1)), ValueError, "two quantiles from 0 to 1"),
        (lambda: plotting.sweep_map(SWEEP, "loss", "rate", "widht"), ValueError, "rate, width, got 'widht'"),
        (lambda: plotting.sweep_map(SWEEP, "loss", "rate", "width", at="end"), ValueError, "at to be one of"),
        (
            lambda: plotting.sweep_map(swept(SWEEP.grid, np.full((4, 2), np.nan)), "loss", "rate", "width"),
            ValueError,
            "a finite loss at one point, got none; lower",
        ),
        (
            lambda: plotting.sweep_curves(swept({"w": np.ones((4, 2))}, np.ones((4, 2))), "loss", by="w"),
            ValueError,
            r"one number under 'w', got one of shape \(2,\)",
        ),
    ],
)
def test_a_sweep_that_cannot_be_drawn_is_refused(draw, error, message):
    with pytest.raises(error, match=rf"^plotting\.sweep_(curves|map): .*{message}"):
        draw()


# ---- predictions -----------------------------------------------------------------------------------------------------


def test_a_score_changes_its_mind_at_the_threshold():
    def score(x):
        assert x.dtype == np.float32
        return x[:, :1] - 0.5  # (n, 1), as a network gives it

    points = X.astype(np.float32)
    figure = plotting.decision_boundary(score, points, np.array([[0], [1], [0]]), threshold=0.0, resolution=41)
    axes = figure.axes[0]
    image = axes.images[0]
    across = np.linspace(-1.2, 1.2, 41)  # a tenth more than the points on each side
    np.testing.assert_allclose(np.asarray(image.get_array())[0], across - 0.5, atol=1e-6)
    left, right, bottom, top = image.get_extent()
    np.testing.assert_allclose([left, right], [-1.23, 1.23], rtol=1e-5)  # the pixels are around the points
    np.testing.assert_allclose([bottom, top], [-0.23, 2.23], rtol=0.2)
    assert image.norm.vmin + image.norm.vmax == pytest.approx(0)
    (boundary,) = [each for each in axes.collections if isinstance(each, matplotlib.contour.ContourSet)]
    np.testing.assert_allclose(boundary.get_paths()[0].vertices[:, 0], 0.5, atol=1e-6)
    assert axes.get_title() == "boundary at a score of 0"
    classes = {each.get_label(): np.asarray(each.get_offsets()) for each in axes.collections[1:]}
    np.testing.assert_array_equal(classes["class 0"], points[[0, 2]])
    np.testing.assert_array_equal(classes["class 1"], points[[1]])
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.axes[1].get_ylabel()) == ("input 0", "input 1", "score")


def test_a_score_that_never_changes_its_mind_says_so():
    def draw(value, **options):
        figure = plotting.decision_boundary(lambda x: np.full(len(x), value), X, resolution=5, **options)
        return figure.axes[0].get_title()

    assert draw(0.2) == "all scores are below 0.5"
    assert draw(0.7) == "all scores are above 0.5"
    with pytest.raises(ValueError, match="a threshold, or scores from 0 to 1, got scores from -2 to -2; of logits"):
        draw(-2.0)
    assert draw(-2.0, threshold=0.0) == "all scores are below 0"


@pytest.mark.parametrize("kind", ["scores", "classes"])
def test_regions_of_classes_are_those_of_the_largest_score(kind):
    def said(x):
        scores = np.stack([-x[:, 0], x[:, 0], np.full(len(x), -9.0)], axis=1)
        return scores if kind == "scores" else scores.argmax(axis=1)

    names = ["left", "right", "nowhere"]
    targets = np.array([0, 1, 2])
    axes = plotting.decision_boundary(said, X, targets, class_names=names, resolution=20).axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert (drawn[:, :10] == 0).all()
    assert (drawn[:, 10:] == 1).all()
    assert legend(axes) == names
    shapes = [each for each in axes.collections if each.get_label() in names]
    assert len({tuple(map(tuple, each.get_paths()[0].vertices.round(3))) for each in shapes}) == 3


def test_where_a_model_says_nothing_it_is_grey_and_said():
    def half(x):
        return np.where(x[:, :1] > 0, np.nan, np.stack([x[:, 0], x[:, 1]], axis=1))

    axes = painted(plotting.decision_boundary(half, X, resolution=10)).axes[0]
    assert axes.get_title() == "classes, 50 % not finite (grey)"
    assert np.isnan(np.asarray(axes.images[0].get_array())[:, 5:]).all()
    numbers = plotting.decision_boundary(lambda x: x[:, 0], X, np.array([0.1, 2.5, -1.0]), threshold=0.0, resolution=9)
    dots = numbers.axes[0].collections[-1]
    assert dots.get_array().tolist() == [0.1, 2.5, -1.0]
    assert dots.norm.vmax == numbers.axes[0].images[0].norm.vmax


@pytest.mark.parametrize(
    ("predict", "x", "y", "options", "message"),
    [
        (lambda x: x, np.ones((4, 3)), None, {}, r"points of shape \(n, 2\), got \(4, 3\); choose two"),
        (lambda x: x, X * np.nan, None, {}, "finite points, got 3 that are not"),
        (lambda x: x[:3], X, None, {}, "an output for each of 40000 inputs"),
        (lambda x: x, X, np.ones((2,), int), {}, r"targets of shape \(3,\), got \(2,\)"),
        (lambda x: x, X, np.array([0, 1, 1]), {"class_names": ["a"]}, "a name for each of 2 classes, got 1"),
        (lambda x: x, X, None, {"threshold": 0.5}, "a threshold for one score alone"),
        (lambda x: x[:, 0] * np.nan, X, None, {}, "a finite score somewhere, got none"),
    ],
)
def test_a_plane_that_cannot_be_drawn_is_refused(predict, x, y, options, message):
    with pytest.raises(ValueError, match=rf"^plotting\.decision_boundary: expected {message}"):
        plotting.decision_boundary(predict, x, y, **options)


def test_classes_are_whole_numbers():
    with pytest.raises(TypeError, match="classes as whole numbers, got float64"):
        plotting.decision_boundary(lambda x: x, X, np.array([0.5, 1.0, 2.0]))
    with pytest.raises(TypeError, match="classes as whole numbers, got float64"):
        plotting.confusion_matrix(np.array([0.0, 1.0]), np.array([0, 1]))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_classes_in_few_bits_are_counted_in_all(dtype):
    classes = np.array([20, 19, 100], dtype)
    figure = plotting.confusion_matrix(classes, classes[::-1][::-1])
    assert figure.axes[0].get_title() == "3 of 3 right, 100 %"


POINTS = np.array([[0.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plotting.histograms([{"k": np.ones(3) * 1j}]), TypeError, "'k' as real numbers, got complex128"),
        (lambda: plotting.history({"loss": np.array([1j, 2])}), TypeError, "loss as real numbers, got complex128"),
        (lambda: plotting.history({"loss": np.array(["a", "b"])}), TypeError, "loss as real numbers, got <U1"),
        (lambda: plotting.history({"loss": np.array([None, 1])}), TypeError, "loss as real numbers, got object"),
        (lambda: plotting.attention(np.array([["a"]])), TypeError, "weights as real numbers"),
        (lambda: plotting.attention(np.eye(2), heads=[0.5]), ValueError, r"heads from 0 to 0, got \[0.5\]"),
        (lambda: plotting.filters(np.full((2, 2, 1, 1), "a")), TypeError, "a kernel as real numbers"),
        (lambda: plotting.confusion_matrix(np.array(["a", "b"]), np.array(["a", "b"])), TypeError, "real numbers"),
        (lambda: plotting.confusion_matrix(np.array([["a"]])), TypeError, "counts as real numbers"),
        (lambda: plotting.confusion_matrix(np.array([0, 10**6]), np.array([0, 1])), ValueError, "at most 2,000"),
        (lambda: plotting.decision_boundary(3, POINTS), TypeError, "predict as a function, got int"),
        (lambda: plotting.decision_boundary(lambda x: x[:, 0] > 0, np.array([["a", "b"]])), TypeError, "points as"),
        (
            lambda: plotting.decision_boundary(lambda x: x[:, 0], POINTS, [np.nan, 1.0], threshold=0.5),
            ValueError,
            "finite targets, got 1 that are not",
        ),
        (lambda: plotting.decision_boundary(lambda x: x[:, 0], POINTS, ["a", "b"]), TypeError, "targets as real"),
        (
            lambda: plotting.decision_boundary(lambda x: x[:, 0], POINTS, threshold=0.5, input_names=("a",)),
            ValueError,
            "two input_names, got 1",
        ),
    ],
)
def test_what_is_no_number_is_not_drawn(draw, error, message):
    with pytest.raises(error, match=rf"^plotting\.\w+: expected .*{message}"):
        draw()


def test_a_confusion_matrix_is_that_of_the_metric_and_of_a_count_by_hand(random):
    truth, outputs = random.integers(0, 4, 60), random.random((60, 4))
    pairs = list(zip(truth, outputs.argmax(axis=1), strict=True))
    expected = np.array([[pairs.count((row, column)) for column in range(4)] for row in range(4)])
    metric = metrics.confusion_matrix(4)
    measured = metric.compute(metric.measure(jnp.asarray(outputs), jnp.asarray(truth)))
    for given in [(measured,), (truth, outputs), (truth, outputs.argmax(axis=1))]:
        axes = plotting.confusion_matrix(*given).axes[0]
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), expected)
        written = np.array([int(text.get_text()) for text in axes.texts]).reshape(4, 4)
        np.testing.assert_array_equal(written, expected)
        right = np.trace(expected)
        assert axes.get_title() == f"{right} of 60 right, {100 * right / 60:.3g} %"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_shares_are_those_of_the_true_class_and_an_empty_row_has_none():
    figure = plotting.confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]]), shares=True, class_names="abc")
    axes = figure.axes[0]
    table = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(table, [[75, 25, 0], [np.nan] * 3, [50, 0, 50]])
    assert [text.get_text() for text in axes.texts] == ["75", "25", "0", "–", "–", "–", "50", "0", "50"]
    assert (ticks(axes, "x"), ticks(axes, "y")) == (list("abc"), list("abc"))
    assert figure.axes[1].get_ylabel() == "share of the true class (%)"


def test_only_all_of_them_are_a_hundred_percent():
    def title(matrix):
        return plotting.confusion_matrix(np.array(matrix)).axes[0].get_title()

    assert title([[99999999, 1], [0, 0]]) == "99999999 of 100000000 right, 99.999 %"
    assert title([[5, 0], [0, 2]]) == "7 of 7 right, 100 %"


def test_a_hundred_classes_have_no_numbers_and_long_names_are_whole_at_both_ends():
    axes = painted(plotting.confusion_matrix(np.eye(100))).axes[0]
    assert not axes.texts
    assert len(ticks(axes, "x")) == 25
    names = ["first " + "x" * 60 + " last", "b"]
    axes = painted(plotting.confusion_matrix(COUNTS, class_names=names)).axes[0]
    assert re.fullmatch("first x+…\nx+ last", ticks(axes, "y")[0])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((np.ones((2, 3)),), {}, r"a square matrix \(classes, classes\), got shape \(2, 3\)"),
        ((np.ones(3, int),), {}, r"got shape \(3,\); of classes \(n,\) pass the predicted ones too"),
        ((-COUNTS,), {}, "counts of at least one example, got from -5.0 to -0.0"),
        ((0 * COUNTS,), {}, "counts of at least one example"),
        ((COUNTS * np.nan,), {}, "counts of at least one example"),
        ((COUNTS,), {"class_names": "abc"}, "a name for each of 2 classes, got 3"),
        ((np.array([0, 1]), np.array([0])), {}, "true and predicted classes of one length"),
        ((np.array([0, -1]), np.array([0, 1])), {}, "classes from 0 on, got -1"),
        ((np.array([0, 1]), np.full((2, 2), np.nan)), {}, "finite scores, got 4 that are not"),
    ],
)
def test_counts_that_are_none_are_refused(given, options, message):
    with pytest.raises(ValueError, match=rf"^plotting\.confusion_matrix: expected .*{message}|{message}"):
        plotting.confusion_matrix(*given, **options)


# ---- functions -------------------------------------------------------------------------------------------------------


def test_activations_have_their_values_and_their_slopes():
    given = [layers.tanh, layers.leaky_relu(0.1), jnp.square, layers.prelu()]
    values, slopes = plotting.activations(given, low=-2.0, high=3.0, points=11).axes
    x = np.linspace(-2, 3, 11)
    expected = {
        "tanh": (np.tanh(x), 1 - np.tanh(x) ** 2),
        "leaky_relu": (np.where(x > 0, x, 0.1 * x), np.where(x > 0, 1, 0.1)),
        "square": (x**2, 2 * x),
        "prelu": (np.where(x > 0, x, 0.25 * x), np.where(x > 0, 1, 0.25)),
    }
    assert legend(values) == list(expected)
    for name, (y, slope) in expected.items():
        np.testing.assert_allclose(line(values, name), y, atol=1e-6)
        at = np.abs(x) > 1e-6  # at the kink each has its own custom
        np.testing.assert_allclose(line(slopes, name)[at], slope[at], atol=1e-5)
    styles_of = {(each.get_linestyle(), each.get_color()) for each in values.get_lines()[:4]}
    assert len(styles_of) == 4
    assert values.figure.legends[0].texts[0].get_text() == "tanh"


def test_functions_may_have_other_names_and_poles():
    figure = plotting.activations({"a": lambda x: 1 / x, "b": jnp.abs}, points=200)
    assert legend(figure.axes[0]) == ["a", "b"]
    assert max(np.abs(figure.axes[1].get_ylim())) < 100


@pytest.mark.slow
def test_the_names_of_many_functions_stand_beside_them():
    many = {f"a rather long name of a function, {i}": lambda x, i=i: jnp.sin(i * x) for i in range(20)}
    figure = painted(plotting.activations(many, points=9))
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    assert all(axes.get_window_extent().x1 < box.x0 for axes in figure.axes)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (layers.relu, TypeError, "a sequence or a dict of functions, got Layer"),
        (["relu"], TypeError, "layers or functions, got str 'relu'"),
        ([], ValueError, "at least one function, got none"),
        ([lambda x: x], ValueError, "a name for each function, got a function without one; pass a dict"),
        ([layers.relu, layers.relu], ValueError, "a name for each function, got 'relu' twice"),
        ([jax.nn.softmax], ValueError, "softmax to act on each number by itself, got one that mixes them"),
        ([jnp.sum], ValueError, r"sum to keep the shape \(401,\), got \(\)"),
    ],
)
def test_functions_that_cannot_be_drawn_are_refused(given, error, message):
    with pytest.raises(error, match=rf"^plotting\.activations: expected {message}"):
        plotting.activations(given)


# ---- weights ---------------------------------------------------------------------------------------------------------


def shares(axes):
    return np.asarray(axes.collections[0].get_array()).T


def test_histograms_over_time_are_those_of_numpy(random):
    moments = [{"a": {"kernel": random.normal(size=(4, 5)) * i, "bias": np.zeros(3)}} for i in (1, 2, 3)]
    figure = plotting.histograms(moments, "**/kernel", bins=7, at=[0, 10, 30], quantity="weight", unit="epoch")
    axes = figure.axes[0]
    every = np.stack([moment["a"]["kernel"].ravel() for moment in moments])
    edges = np.linspace(every.min(), every.max(), 8)
    expected = [np.histogram(row, edges)[0] / 20 for row in every]
    np.testing.assert_allclose(shares(axes), expected)
    low, median, high = (np.asarray(each.get_ydata()) for each in axes.get_lines())
    np.testing.assert_allclose(median, np.median(every, axis=1))
    np.testing.assert_allclose([low, high], np.quantile(every, (0.05, 0.95), axis=1))
    np.testing.assert_allclose(axes.collections[0].get_coordinates()[0, :, 0], [-5, 5, 20, 40])
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("a/kernel", "epoch", "weight")
    assert figure.axes[1].get_ylabel() == "share of the numbers in a bin"
    # The same from one tree with an axis of moments, as telemetry has it.
    stacked = plotting.histograms({"a": {"kernel": np.stack([m["a"]["kernel"] for m in moments])}}, bins=7)
    np.testing.assert_allclose(shares(stacked.axes[0]), expected)


def test_histograms_from_the_telemetry_of_a_run():
    x = jnp.linspace(-1, 1, 8)[:, None]
    asked = {"weights": lambda params, gradient, updates: trees.select(params, "**/kernel")}
    model = layers.serial(layers.dense(4), layers.tanh, layers.dense(1))
    trainer = training.supervised(model, losses.squared_error, optax.sgd(0.1), telemetry=asked)
    result = training.run(trainer, (x, x), key=jax.random.key(0), epochs=5, batch_size=None)
    figure = painted(plotting.histograms(result.telemetry["weights"], "dense_*/kernel"))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["dense_0/kernel", "dense_1/kernel"]
    median = figure.axes[0].get_lines()[1].get_ydata()
    np.testing.assert_allclose(median, np.median(result.telemetry["weights"]["dense_0/kernel"], axis=(1, 2)), rtol=1e-6)


def test_sizes_of_gradients_are_on_a_logarithmic_axis_and_zeros_are_counted():
    rows = np.array([[1e-4, -1e-2, 0.0, 1.0], [1e-3, 1e-3, -1e-3, 1e-3]])
    axes = plotting.histograms({"g": rows}, bins=4, scale="log", quantity="gradient").axes[0]
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "size of the gradient")
    assert axes.get_title() == "g\nup to 25 % zeros"
    np.testing.assert_allclose(shares(axes).sum(axis=1), 1)
    edges = axes.collections[0].get_coordinates()[:, 0, 1]
    np.testing.assert_allclose(np.diff(np.log(edges)), np.diff(np.log(edges))[0])
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), [1e-2, 1e-3])


def test_numbers_that_are_not_finite_are_said_and_leave_the_others_alone(random):
    rows = random.normal(size=(5, 8))
    rows[1, 0], rows[3] = np.inf, np.nan
    axes = painted(plotting.histograms({"w": rows})).axes[0]
    assert axes.get_title() == "w\nnot finite at 2 of 5 moments"
    total = shares(axes).sum(axis=1)
    np.testing.assert_allclose(total[[0, 1, 2, 4]], 1)
    assert np.isnan(total[3])
    single = painted(plotting.histograms([{"bias": np.zeros(3)}])).axes[0]  # one moment of what never moved
    assert shares(single)[0, shares(single).shape[1] // 2] == 1


def test_more_moments_than_columns_are_pooled(random):
    rows = random.normal(size=(301, 8))
    rows[3:6] = np.nan
    rows[7] = np.nan
    axes = painted(plotting.histograms({"w": rows}, bins=5)).axes[0]
    assert axes.get_xlabel() == "step (columns of 3)"
    drawn, edges = shares(axes), np.linspace(np.nanmin(rows), np.nanmax(rows), 6)
    assert drawn.shape == (101, 5)
    alone = [np.histogram(row, edges)[0] / 8 for row in rows]
    np.testing.assert_allclose(drawn[0], np.mean(alone[:3], axis=0))
    assert np.isnan(drawn[1]).all()
    np.testing.assert_allclose(drawn[2], np.mean([alone[6], alone[8]], axis=0))
    np.testing.assert_allclose(drawn[100], alone[300])
    assert axes.get_lines()[1].get_xdata()[:2].tolist() == [2, 5]


def test_counts_that_were_made_in_the_run_are_taken_as_they_are(random):
    edges, rows = np.linspace(-1, 1, 6), random.uniform(-1, 1, (3, 50))
    rows[2, :10] = 7.0
    counts = np.stack([np.histogram(row, edges)[0] for row in rows])
    axes = plotting.histograms({"w": counts}, edges=edges).axes[0]
    np.testing.assert_allclose(shares(axes), counts / counts.sum(axis=1, keepdims=True))
    assert axes.get_title() == "w\nup to 20 % in no bin"
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata()[:2], np.median(rows[:2], axis=1), atol=0.4)


@pytest.mark.parametrize(
    ("values", "patterns", "options", "error", "message"),
    [
        ([{"a": np.ones(2)}], ["b"], {}, ValueError, "a pattern that matches a path, got 'b'; the nearest are 'a'"),
        ([], [], {}, ValueError, "at least one moment, got an empty sequence"),
        ([{"a": np.ones(2)}, {"a": np.ones(3)}], [], {}, ValueError, "the same arrays at each moment, got others"),
        ([{"a": np.ones(2)}, {"b": np.ones(2)}], ["*"], {}, ValueError, "the same arrays at each moment"),
        ({"a": np.ones(2), "b": np.ones(3)}, [], {}, ValueError, r"an axis of moments, .* got a \(2,\), b \(3,\)"),
        ({"a": np.array(1.0)}, [], {}, ValueError, "pass a list for single params"),
        ({"a": np.full((2, 2), np.nan)}, [], {}, ValueError, "a finite number at 'a', got none"),
        ({"a": np.zeros((2, 2))}, [], {"scale": "log"}, ValueError, "a finite number that is not 0 at 'a'"),
        ({f"a{i}": np.ones(2) for i in range(25)}, [], {}, ValueError, "at most 24 arrays, got 25; choose by patterns"),
        ({"a": np.ones((2, 2))}, [], {"at": [1, 1]}, ValueError, "2 moments that grow"),
        (
            {"a": np.ones((2, 2))},
            [],
            {"edges": [0, 1]},
            ValueError,
            r"counts \(moments, 1\) at 'a', got shape \(2, 2\)",
        ),
        ({"a": np.ones((2, 2))}, [], {"edges": [0, 2, 1]}, ValueError, "finite edges that grow"),
        ({"a": np.zeros((2, 1))}, [], {"edges": [0, 1]}, ValueError, "counts of something at 'a'"),
        ({"a": np.array(["x"])}, [], {}, TypeError, "numbers at 'a', got <U1"),
        ([{"a": jax.random.key(0)}], [], {}, TypeError, "numbers at 'a', got key<fry>"),
        ({"a": np.ones(2)}, [], {"bins": 2.5}, TypeError, "bins as a whole number"),
    ],
)
def test_histograms_of_nothing_are_refused(values, patterns, options, error, message):
    with pytest.raises(error, match=message):
        plotting.histograms(values, *patterns, **options)


def test_filters_are_the_weights_of_the_kernel_in_their_places(random):
    kernel = random.normal(size=(3, 3, 2, 5))
    kernel[0, 0, 0, 0] = 7.0
    axes = plotting.filters(kernel, outputs=[4, 1, 0]).axes[0]
    picture = np.asarray(axes.images[0].get_array())
    for row in range(2):
        for column, output in enumerate([4, 1, 0]):
            tile = picture[14 * row : 14 * row + 12, 14 * column : 14 * column + 12]
            np.testing.assert_array_equal(tile[2::4, 2::4], kernel[:, :, row, output])
    assert np.isnan(picture[12:14]).all()
    assert np.isnan(picture[:, 12:14]).all()
    assert axes.get_title() == "3 of 5 outputs, 3 x 3"
    assert (ticks(axes, "x"), ticks(axes, "y")) == (["4", "1", "0"], ["0", "1"])
    bound = np.abs(kernel).max()
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-bound, bound)  # white is 0


def test_filters_of_one_input_of_colours_of_lines_and_of_many_features(random):
    kernel = random.normal(size=(5, 5, 1, 7))
    axes = painted(plotting.filters(kernel)).axes[0]
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape == (34, 34)  # three by three, in ten pixels each
    np.testing.assert_array_equal(picture[12:22:2, 24:34:2], kernel[:, :, 0, 5])
    assert (axes.get_title(), axes.get_xlabel()) == ("7 filters, 5 x 5", "outputs 0 to 6, row by row")
    colours = plotting.filters(random.normal(size=(2, 2, 3, 4)), rgb=True).axes[0].images[0].get_array()
    assert colours.shape == (26, 26, 3)
    assert 0 <= colours.min() < colours.max() <= 1
    bars = np.asarray(painted(plotting.filters(np.arange(8.0).reshape(4, 2, 1))).axes[0].images[0].get_array())
    np.testing.assert_array_equal(bars[0, 1::3], [0, 2, 4, 6])
    assert bars.shape == (26, 12)
    many = painted(plotting.filters(np.ones((3, 3, 64, 128)))).axes[0]
    assert many.get_title() == "32 of 64 inputs, 32 of 128 outputs, 3 x 3"
    kernel[0, 0, 0, :2] = np.nan
    assert plotting.filters(kernel).axes[0].get_title() == "2 not finite, 5 x 5"


@pytest.mark.parametrize(
    ("kernel", "options", "error", "message"),
    [
        ({"conv_0": {"kernel": np.ones((3, 3, 1, 2))}}, {}, TypeError, r"arrays at \['conv_0/kernel'\]; pass it alone"),
        (np.ones((3, 3)), {}, ValueError, r"a kernel \(height, width, inputs, outputs\), got shape \(3, 3\)"),
        (np.ones((3, 3, 3, 1, 2)), {}, ValueError, r"of three spatial axes pass a slice"),
        (np.full((3, 3, 1, 2), np.nan), {}, ValueError, "a finite weight, got none"),
        (np.ones((3, 3, 1, 2)), {"outputs": [2]}, ValueError, r"outputs from 0 to 1, got \[2\]"),
        (np.ones((3, 3, 1, 2)), {"inputs": []}, ValueError, r"inputs from 0 to 0, got \[\]"),
        (np.ones((3, 3, 1, 2)), {"rgb": True}, ValueError, "all of three inputs, for rgb=True, got 1"),
    ],
)
def test_filters_that_are_none_are_refused(kernel, options, error, message):
    with pytest.raises(error, match=rf"^plotting\.filters: .*{message}"):
        plotting.filters(kernel, **options)


# ---- attention -------------------------------------------------------------------------------------------------------


def test_attention_is_a_map_for_each_head_in_one_scale(random):
    weights = random.dirichlet(np.ones(5), size=(3, 4))
    weights[2, 1] = np.nan
    words = ["some", "words", "in", "a"]
    figure = plotting.attention(weights, query_names=words, key_names=list("abcde"), heads=[2, 0])
    for axes, head in zip(figure.axes[:2], (2, 0), strict=True):
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), weights[head])
        assert axes.get_title() == f"head {head} of 3"
        assert (ticks(axes, "y"), ticks(axes, "x")) == (words, list("abcde"))
        assert axes.images[0].get_clim() == (0, np.nanmax(weights[[2, 0]]))
    (single,) = painted(plotting.attention(weights[0, :, :4] / 9, query_names=words)).axes[:-1]
    assert ticks(single, "x") == words  # of a sequence that looks at itself
    painted(plotting.attention(np.stack([np.eye(3), np.full((3, 3), np.nan)]), heads=[1]))  # a head that saw nothing
    many = plotting.attention(np.full((20, 30, 30), 1 / 30))
    assert [axes.get_title() for axes in many.axes[:-1]] == [f"head {i} of 20" for i in range(16)]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.ones((2, 3, 4, 5)), {}, r"weights \(heads, queries, keys\), got shape \(2, 3, 4, 5\); choose an example"),
        (np.full((2, 3, 3), -1.0), {}, "which add up to 1 in a row, got rows with a least weight of -1"),
        (np.ones((2, 3, 3)), {}, "a sum of 3; pass them after the softmax"),
        (np.full((2, 3), np.nan), {}, "a finite weight, got none"),
        (np.eye(3), {"query_names": ["a"]}, "query_names, 3 of them, got 1"),
        (np.eye(3), {"key_names": "abc"}, "key_names, 3 of them, got a string"),
        (np.eye(3), {"heads": [1]}, r"heads from 0 to 0, got \[1\]"),
    ],
)
def test_attention_that_is_none_is_refused(weights, options, message):
    with pytest.raises(ValueError, match=rf"^plotting\.attention: expected .*{message}"):
        plotting.attention(weights, **options)


# ---- the loss --------------------------------------------------------------------------------------------------------


def quadratic(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_the_landscape_is_the_loss_on_a_plane_in_directions_with_the_norms_of_the_filters(random):
    params = {
        "conv": {"kernel": jnp.asarray(random.normal(size=(2, 3, 2, 4)), jnp.float32), "bias": jnp.ones(4)},
        "count": jnp.arange(6).reshape(2, 3),
        "dense": jnp.asarray(random.normal(size=(6, 5)), jnp.float32).at[:, 2].set(0.0),
    }
    key = jax.random.key(1)
    moved = _directions("test", key, params)
    flat = [np.concatenate([d["conv"]["kernel"].ravel(), d["dense"].ravel()]) for d in moved]
    for d in moved:
        for pair in ((params["conv"]["kernel"], d["conv"]["kernel"]), (params["dense"], d["dense"])):
            norms = [np.sqrt((np.asarray(a) ** 2).sum(axis=tuple(range(a.ndim - 1)))) for a in pair]
            np.testing.assert_allclose(*norms, rtol=1e-5)
        assert not d["conv"]["bias"].any()
        assert not d["count"].any()
    assert abs(np.corrcoef(*flat)[0, 1]) < 0.5  # two of them

    def loss(params):
        assert params["count"].dtype == jnp.int32
        return quadratic([params["conv"], params["dense"]])

    axes = plotting.landscape(loss, params, key=key, span=0.5, resolution=5).axes[0]
    steps = np.linspace(-0.5, 0.5, 5)
    centre = np.concatenate([params["conv"]["kernel"].ravel(), params["dense"].ravel()])
    expected = [[((centre + a * flat[0] + b * flat[1]) ** 2).sum() + 4 for a in steps] for b in steps]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected, rtol=1e-5)
    assert tuple(axes.images[0].get_extent()) == (-0.625, 0.625, -0.625, 0.625)
    assert axes.get_title() == f"loss of the params: {float(loss(params)):.4g}"


@pytest.mark.slow
def test_a_landscape_in_pieces_is_the_same():
    drawn = [
        plotting.landscape(quadratic, jnp.ones((2, 2)), key=jax.random.key(0), resolution=5, batch_size=size)
        for size in (None, 4)
    ]
    first, second = (np.asarray(figure.axes[0].images[0].get_array()) for figure in drawn)
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.slow
def test_a_landscape_with_holes_and_one_that_is_flat():
    def hole(params):
        size = quadratic(params)
        return jnp.where(size > 8, jnp.nan, size)

    key, params = jax.random.key(0), jnp.ones((2, 2))
    axes = painted(plotting.landscape(hole, params, key=key, resolution=9, scale="log")).axes[0]
    bad = np.isnan(np.asarray(axes.images[0].get_array())).sum()
    assert 0 < bad < 81
    assert axes.get_title() == f"loss of the params: 4, {bad} of 81 points not finite (grey)"
    painted(plotting.landscape(lambda params: 0.0 * quadratic(params), params, key=key, resolution=4))


def test_a_line_leads_from_some_params_to_others():
    first, second = {"a": jnp.array([1.0, 0.0])}, {"a": jnp.array([1.0, 2.0])}
    (axes,) = plotting.interpolation(quadratic, first, second, beyond=0.5, resolution=5).axes
    t = np.array([-0.5, 0.0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), t)
    np.testing.assert_allclose(line(axes, "loss"), 1 + 4 * t**2, rtol=1e-6)
    assert legend(axes) == ["loss", "first: 1", "second: 5"]


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda key: plotting.landscape(quadratic, jnp.ones(3), key=key), ValueError, "a floating array of two axes"),
        (lambda key: plotting.landscape(jnp.abs, jnp.ones((2, 2)), key=key), ValueError, "a loss that is one number"),
        (lambda key: plotting.landscape(quadratic, jnp.ones((2, 2)), key=0), TypeError, "key"),
        (lambda key: plotting.landscape(quadratic, jnp.ones((2, 2)), key=key, span=0), ValueError, "a span above 0"),
        (lambda key: plotting.landscape(quadratic, jnp.ones((2, 2)), key=key, scale="x"), ValueError, "scale to be"),
        (
            lambda key: plotting.interpolation(lambda p: jnp.nan * p.sum(), jnp.ones(2), jnp.ones(2), resolution=3),
            ValueError,
            "a finite loss at one point, got none",
        ),
        (
            lambda key: plotting.interpolation(quadratic, jnp.ones(3), jnp.ones(2)),
            ValueError,
            r"params of one form, got \(3,\) and \(2,\)",
        ),
        (lambda key: plotting.interpolation(quadratic, jnp.ones(3), jnp.ones(3), beyond=-1), ValueError, "from 0 on"),
    ],
)
def test_a_loss_that_cannot_be_drawn_is_refused(draw, error, message):
    with pytest.raises(error, match=message):
        draw(jax.random.key(0))


# ---- the gallery -----------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
GALLERY = runpy.run_path(str(ROOT / "docs" / "gallery.py"))


def texts(path):
    """The words that a PNG file holds beside its picture."""
    content, found, at = path.read_bytes(), {}, 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0]
        if kind == b"tEXt":
            name, _, value = body.partition(b"\0")
            found[name.decode()] = value.decode()
        at += 12 + size
    return found


def test_the_gallery_is_the_page_that_its_script_makes():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert page == GALLERY["page"](), "write it anew: python docs/gallery.py"


def test_the_pictures_are_those_of_the_code_beside_them():
    drawn = [section for section in GALLERY["SECTIONS"] if GALLERY["has_picture"](section)]
    for section in drawn:
        assert texts(GALLERY["picture"](section))["Source"] == GALLERY["mark"](section), "python docs/gallery.py"
    kept = {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert kept == {GALLERY["picture"](section).name for section in drawn}


def test_the_gallery_has_all_of_plotting():
    called = {
        node.func.attr
        for section in GALLERY["SECTIONS"]
        for node in ast.walk(ast.parse(GALLERY["code"](section)))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("plotting.")
    }
    assert called == set(funcnn.plotting.__all__)
