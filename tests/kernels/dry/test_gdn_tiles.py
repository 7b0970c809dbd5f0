"""Tiles of the prefill kernels: the defaults by GPU, what may be chosen, and that what is chosen is what is warmed."""

from dataclasses import replace

import pytest
import triton.testing
from tiny import CONFIGS

from hotstart.config.model import parse_model_config
from hotstart.engine.check import Checker
from hotstart.kernels import dry, gdn_tiles, tune
from hotstart.kernels.gdn_tiles import ConvTiles, RuleShape, ScanTiles
from hotstart.kernels.target import current_target
from hotstart.kernels.warm_up import warm_up
from hotstart.kernels.watch import Watch

OURS = gdn_tiles._conv, gdn_tiles._prep, gdn_tiles._scan
SHAPE = RuleShape(16, 32, 128, 128, 64, "bfloat16")
WIDE_KEYS = RuleShape(4, 12, 256, 256, 32, "bfloat16")
SMALL = RuleShape(3, 6, 24, 16, 64, "bfloat16")
FULL = RuleShape(16, 32, 128, 128, 64, "float32")
DEFAULTS = [
    ("h200", SHAPE, ScanTiles(64, 4, 128, 8, 3)),
    ("a100", SHAPE, ScanTiles(64, 4, 128, 8, 2)),
    ("rtx4090", SHAPE, ScanTiles(64, 4, 128, 8, 1)),
    ("rtx5090", SHAPE, ScanTiles(32, 2, 32, 2, 1)),
    ("b200", SHAPE, ScanTiles(32, 2, 32, 2, 3)),
    ("a100", WIDE_KEYS, ScanTiles(64, 4, 64, 4, 2)),
    ("a100", SMALL, ScanTiles(16, 4, 16, 4, 3)),
    ("h200", FULL, ScanTiles(64, 4, 128, 8, 1)),
]


@pytest.mark.parametrize(("name", "shape", "tiles"), DEFAULTS, ids=lambda value: str(value)[:24])
def test_the_default_of_the_scan_is_the_largest_that_fits(name, shape, tiles):
    with dry.gpu(name):
        assert gdn_tiles._scan.default(shape) == tiles


@pytest.mark.parametrize("name", dry.GPUS)
def test_both_cuts_of_the_scan_compute_alike(name):
    """Sixteen rows a warp; on Hopper whole warp groups, on Blackwell two warps alone."""
    with dry.gpu(name) as gpu:
        for tiles in gdn_tiles._scan.candidates(current_target(), SHAPE):
            assert (tiles.narrow, tiles.wide) == (16 * tiles.narrow_warps, 16 * tiles.wide_warps)
            assert gpu.arch < 100 or tiles.wide_warps == tiles.narrow_warps == 2
            assert gpu.arch != 90 or tiles.narrow_warps >= 4
        for tunable in OURS:
            candidates = tunable.candidates(current_target(), SHAPE)
            assert len(candidates) == len(set(candidates)) <= 18, tunable.name


def test_what_tuning_chose_is_what_is_warmed_and_served(monkeypatch):
    checker = Checker(parse_model_config(CONFIGS["moe"], {}), dtype="bfloat16")
    monkeypatch.setattr(
        gdn_tiles._conv, "candidates", lambda target, shape: (ConvTiles(64, 4, 4), ConvTiles(128, 8, 4))
    )
    monkeypatch.setattr(tune, "TUNABLES", list(OURS))
    for tunable in OURS[1:]:
        first = tunable.candidates
        monkeypatch.setattr(tunable, "candidates", lambda target, shape, first=first: first(target, shape)[:1])

    def do_bench(call, **keywords):
        call()
        (shape,) = gdn_tiles._families(checker.space())
        return 0.5 if gdn_tiles._conv(shape) == ConvTiles(128, 8, 4) else 1.0

    with dry.gpu("a100"), monkeypatch.context() as patches:
        patches.setattr(triton.testing, "do_bench", do_bench)
        report = tune.resolve(checker.space())
        choices = {choice.kernel: choice for choice in report.choices}
        assert choices["gdn_conv"].tiles == ConvTiles(128, 8, 4)
        assert choices["gdn_conv"].entry.gain == pytest.approx(2.0)
        assert choices["gdn_conv"].entry.us.keys() == {"1x4096", "8x512", "32x64"}
        assert choices["gdn_scan"].origin == "default"  # there is no other
    with dry.gpu("a100"), Watch("error") as watch:
        tune.resolve(checker.space())
        warmed = warm_up(checker.space())
        runs = {dict(key.arguments)["RUN"] for key in warmed.keys if key.kernel == "_gdn_conv_kernel"}
        assert runs == {"8"}
        watch.seal()
        checker.run(20, watch)
    assert watch.events == []


def test_prefill_by_a_library_needs_no_tiles():
    space = Checker(parse_model_config(CONFIGS["moe"], {})).space()
    assert gdn_tiles._families(space) == (RuleShape(3, 6, 24, 16, 64, "float32"),)
    assert gdn_tiles._families(replace(space, gdn_prefill="fla")) == ()
