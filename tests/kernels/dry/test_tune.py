"""Tiles: where they come from, and that timing them is bounded, repeatable and done once.  Times are the test's own."""

import json
from dataclasses import asdict, dataclass, replace

import pytest
import torch
import triton.language as tl
import triton.testing

from hotstart.cli.main import main
from hotstart.config.published import published_config
from hotstart.engine import tuning
from hotstart.errors import ConfigError, WarmupError
from hotstart.kernels import dry, gdn_decode, gdn_external, linear_skinny, tile_tables, tune
from hotstart.kernels.gdn_backends import choose_prefill
from hotstart.kernels.launch import LAUNCHERS, Launcher, kernel, recording
from hotstart.kernels.target import Target, current_target
from hotstart.kernels.tile_tables import Entry, Table
from hotstart.kernels.tiles import TUNABLES, Trial, Tunable
from hotstart.layers.gated_delta_net import gdn_dims


@dataclass(frozen=True)
class Family:
    width: int
    dtype: str


@dataclass(frozen=True)
class Tiles:
    block: int
    warps: int = 4


@kernel
def _product_kernel(x_ptr, y_ptr, z_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(z_ptr + offsets, tl.dot(tl.load(x_ptr + offsets), tl.trans(tl.load(y_ptr + offsets))))


FAMILY = Family(320, "fp32")
DEFAULT, SMALL, LARGE = Tiles(32), Tiles(16), Tiles(128)  # the large one takes 72 KiB of shared memory
ALL = (DEFAULT, SMALL, Tiles(32, 8), LARGE)


@pytest.fixture
def product():
    """An op, alone in the registry."""
    launchers, tunables = list(LAUNCHERS), list(TUNABLES)
    TUNABLES.clear()
    launch = Launcher(_product_kernel, warmup=lambda space: None)

    def trial(space, family, lengths):
        scratch = tuple(space.empty(sum(lengths), 1024, dtype=torch.float32) for _ in range(3))

        def call():
            tiles = tunable(family)
            launch((1,), *scratch, N=tiles.block, num_warps=tiles.warps)

        return Trial(call, scratch)

    tunable = Tunable(
        "product",
        (launch,),
        families=lambda space: (replace(FAMILY, width=space.hidden_size),),
        candidates=lambda target, family: ALL,
        trial=trial,
        shapes=((256,), (16,) * 8),
    )
    yield tunable
    LAUNCHERS[:], TUNABLES[:] = launchers, tunables


@pytest.fixture
def times(product, monkeypatch):
    """Microseconds by tiles; every measurement really launches, and is listed in `times["seen"]`."""
    table = {"seen": []}

    def do_bench(call, **keywords):
        call()
        tiles = product(FAMILY)
        table["seen"].append(tiles)
        return table.get(tiles, 100.0) / 1000

    def install():
        monkeypatch.setattr(triton.testing, "do_bench", do_bench)
        return table

    return install


@pytest.fixture
def small_gpu():
    with dry.gpu("sm_120:64KiB"):
        yield


def test_the_fastest_that_fits_wins_and_the_second_start_times_nothing(product, times, space, small_gpu):
    seen = times()
    seen[SMALL] = 50.0
    report = tune.resolve(space, command="pytest")
    (choice,) = report.choices
    assert (choice.tiles, choice.origin) == (SMALL, "tuned")
    assert product(FAMILY) == SMALL
    assert LARGE not in seen["seen"]  # more shared memory than there is: never launched
    assert choice.entry.us == {"1x256": 50.0, "8x16": 50.0}
    assert choice.entry.gain == pytest.approx(2.0)
    assert "1 tuned in" in report.summary()
    assert 0 < report.scratch_bytes <= tune.INPUT_BYTES

    seen["seen"].clear()
    product.use(FAMILY, DEFAULT)
    again = tune.resolve(space)
    assert seen["seen"] == []
    assert (again.choices[0].tiles, again.choices[0].origin, again.scratch_bytes) == (SMALL, "cached", 0)
    assert product(FAMILY) == SMALL


def test_candidates_go_through_the_launcher_so_the_winner_is_known(product, times, space, small_gpu):
    times()[SMALL] = 50.0
    tune.resolve(space)
    with recording() as record:
        product.trial(space.on(torch.device("cpu")), FAMILY, (32,)).call()
    assert set(record.counts) <= product.launchers[0].known


@pytest.mark.parametrize(
    ("other", "expected"),
    [({SMALL: 99.0, Tiles(32, 8): 98.5}, DEFAULT), ({SMALL: 97.9, Tiles(32, 8): 97.0}, SMALL)],
    ids=["within the tolerance of the default", "of two that tie, the first declared"],
)
def test_ties_fall_in_declared_order(product, times, space, small_gpu, other, expected):
    times().update(other)
    assert tune.resolve(space).choices[0].tiles == expected


def test_more_shared_memory_admits_more_candidates(product, times, space):
    with dry.gpu("h200"):
        times()[LARGE] = 10.0
        assert tune.resolve(space).choices[0].tiles == LARGE
    with dry.gpu("h100"):
        assert product(FAMILY) == DEFAULT  # another GPU, another choice


def test_off_never_times_and_force_times_again(product, times, space, small_gpu):
    seen = times()
    assert tune.resolve(space, mode="off").choices[0].origin == "default"
    tune.resolve(space)
    count = len(seen["seen"])
    seen[SMALL] = 50.0
    assert tune.resolve(space, mode="off").choices[0].origin == "cached"
    assert len(seen["seen"]) == count
    forced = tune.resolve(space, mode="force").choices[0]
    assert (forced.tiles, forced.origin) == (SMALL, "tuned")
    assert tune.resolve(space).choices[0].tiles == SMALL


@pytest.mark.parametrize("change", ["gpu", "driver", "triton", "source", "family"])
def test_the_cache_holds_for_one_gpu_driver_triton_source_and_family(
    product, times, space, small_gpu, change, monkeypatch
):
    times()
    tune.resolve(space)
    target = current_target()
    if change in ("gpu", "driver"):
        monkeypatch.setattr(tune, "current_target", lambda: target._replace(**{change: "another"}))
    elif change == "triton":
        monkeypatch.setattr("triton.__version__", "0.0")
    elif change == "source":
        monkeypatch.setattr(Tunable, "source", property(lambda self: "another"))
    else:
        space = replace(space, hidden_size=640)
        product.use(replace(FAMILY, width=640), DEFAULT)
    assert tune.resolve(space).choices[0].origin == "tuned"


def test_time_is_bounded_and_what_was_timed_competes(product, times, space, small_gpu, monkeypatch):
    """The clock jumps by 10 s at every look."""
    seen, ticks, progress = times(), iter(range(0, 10_000, 10)), []
    seen[SMALL] = 50.0
    monkeypatch.setattr(tune.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(tune.os, "cpu_count", lambda: 2)
    report = tune.resolve(space, time_limit_s=85.0, on_tuning=lambda *event: progress.append(event))
    # A glance at what fits; the first shape without the third, which is far behind; half of the second.
    assert seen["seen"] == [DEFAULT, SMALL, Tiles(32, 8), DEFAULT, SMALL, DEFAULT]
    assert (report.choices[0].tiles, report.choices[0].origin) == (DEFAULT, "tuned")
    assert "1 of 4 timed in full" in report.choices[0].note
    assert progress == [("kernels, compiling", 2, 4, 75.0), ("kernels, compiling", 4, 4, 65.0), ("product", 2, 4, 0.0)]
    seen["seen"].clear()
    progress.clear()
    report = tune.resolve(space, mode="force", time_limit_s=15.0, on_tuning=lambda *event: progress.append(event))
    assert progress[:1] == [("kernels, compiling", 2, 4, 5.0)] and "compiling" not in progress[1][0]
    assert (report.choices[0].origin, seen["seen"]) == ("default", [])
    assert "too short" in report.choices[0].note


def test_all_kernels_compile_before_one_is_timed(product, times, space, small_gpu, monkeypatch):
    """And once, however many models ask for the same shapes."""
    log = times()["seen"]
    refusal = tune._Tuner._refusal
    monkeypatch.setattr(tune._Tuner, "_refusal", lambda self, record: log.append("compiled") or refusal(self, record))
    product.families = lambda space: (FAMILY, replace(FAMILY, dtype="other"))
    tune.resolve(space, space)
    assert log[:8] == ["compiled"] * 8 and "compiled" not in log[8:] and len(log) > 8


def test_trials_shrink_until_their_memory_keeps_within_the_bound(product, times, space, small_gpu, monkeypatch):
    times()
    monkeypatch.setattr(tune, "INPUT_BYTES", 3 * 40 * 1024 * 4)
    report = tune.resolve(space)
    assert report.choices[0].entry.us.keys() == {"1x32", "2x16"}
    assert report.scratch_bytes == 3 * 32 * 1024 * 4


def test_if_nothing_runs_the_kernel_is_named(product, times, space, small_gpu):
    times()
    product.candidates = lambda target, family: (LARGE, replace(LARGE, warps=8))
    with pytest.raises(WarmupError, match=r"product: none of 2 tiles.*shared memory"):
        tune.resolve(space)


@pytest.mark.parametrize("launcher", [gdn_decode._launch_gdn_step, linear_skinny._launch, print])
def test_decode_and_in_place_kernels_cannot_be_registered(launcher):
    before = list(TUNABLES)
    with pytest.raises(TypeError, match="fixed"):
        Tunable("x", (launcher,), families=lambda s: (), candidates=lambda t, f: (), trial=lambda *a: None)
    assert before == TUNABLES


def entry_of(product, **changes):
    values = {
        "kernel": "product",
        "family": asdict(FAMILY),
        "tiles": asdict(SMALL),
        "us": {"1x256": 5.0},
        "default_us": {"1x256": 10.0},
        "date": "2026-01-01",
        "command": "hotstart tune",
        "versions": {"triton": "3.7.1"},
        "source": product.source,
    }
    return Entry(**values | changes)


def test_a_shipped_table_comes_first_and_says_who_measured(product, times, space, small_gpu, monkeypatch):
    seen = times()
    target = current_target()
    tile_tables.write_table(
        tile_tables.cached_path(target), Table(target.gpu, (entry_of(product, tiles=asdict(DEFAULT)),))
    )
    monkeypatch.setattr(tune, "shipped", lambda target: Table(target.gpu, (entry_of(product),)))
    (choice,) = tune.resolve(space).choices
    assert (choice.tiles, choice.origin, seen["seen"]) == (SMALL, "shipped", [])
    assert "measured 2026-01-01 with Triton 3.7.1" in str(choice)
    monkeypatch.setattr(tune, "shipped", lambda target: Table(target.gpu, (entry_of(product, source="old"),)))
    assert "earlier source" in str(tune.resolve(space).choices[0])
    gone = entry_of(product, tiles=asdict(Tiles(64)))  # no candidate any more
    monkeypatch.setattr(tune, "shipped", lambda target: Table(target.gpu, (gone,)))
    assert tune.resolve(space).choices[0].origin == "cached"


@pytest.mark.parametrize("missing", ["us", "date", "command", "versions", "source"])
def test_an_entry_without_its_measurement_does_not_count(product, small_gpu, tmp_path, missing):
    row = asdict(entry_of(product)) | {missing: {} if missing == "us" else ""}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"gpu": "x", "tiles": [row]}))
    with pytest.raises(ConfigError, match=f"entry 0 has no {missing}: it does not count"):
        tile_tables.read_table(path)


def test_tables_merge_and_survive_the_disk(product, small_gpu, tmp_path):
    path, other = tmp_path / "deep" / "table.json", entry_of(product, kernel="another")
    tile_tables.write_table(path, Table("x", (entry_of(product),)).merged((other, entry_of(product, us={"1x1": 1.0}))))
    table = tile_tables.read_table(path)
    assert [e.kernel for e in table.entries] == ["another", "product"]
    assert table.find("product", asdict(FAMILY)).us == {"1x1": 1.0}


def test_a_spoilt_or_forbidden_cache_is_told_and_does_no_harm(product, times, space, small_gpu, caplog, monkeypatch):
    times()
    path = tile_tables.cached_path(current_target())
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert tune.resolve(space).choices[0].origin == "tuned"
    assert "tile cache not read" in caplog.text
    monkeypatch.setenv("HOTSTART_CACHE", str(path))  # a file, where a folder should be
    assert tune.resolve(space).choices[0].origin == "tuned"
    assert "tiles not kept" in caplog.text


def test_shipped_tables_are_read_and_stand_under_their_name():
    folder = tile_tables.resources.files("hotstart.kernels") / "tables"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(".json"):
            table = tile_tables.read_table(path)
            assert table.entries
            assert tile_tables.shipped(Target(table.gpu, 90, 0, 0, "")) == table, path.name


def test_the_command_times_and_exports_a_table(product, times, small_gpu, tmp_path, capsys, monkeypatch):
    path, command = tmp_path / "table.json", ["tune", "qwen3.5-2b", "qwen3.5-27b", "--export"]
    product.families = lambda space: (FAMILY,)  # of both models: timed once
    assert main([*command, str(path)]) == 2
    assert "on the GPU of this machine, and there is none" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = times()
    seen[SMALL] = 50.0
    assert main([*command, str(path)]) == 0
    assert seen["seen"].count(SMALL) == 3  # a glance, and two shapes
    (entry,) = tile_tables.read_table(path).entries
    assert (entry.tiles, entry.us["1x256"]) == (asdict(SMALL), 50.0)
    assert "product: block=16 warps=4 for width=320 dtype=fp32: tuned, 2.00 times" in capsys.readouterr().out
    path.write_text(path.read_text().replace('"stub"', '"NVIDIA Other"', 1))
    assert main([*command, str(path)]) == 2
    assert "is a table for NVIDIA Other" in capsys.readouterr().err


def test_installed_libraries_are_compared_and_the_next_start_knows(monkeypatch):
    """On this stub ours takes 100 us for anything, the library 50; another does not fit the GPU."""
    installed = {"fla": "0.6.0", "flashinfer": "0.6.13"}
    monkeypatch.setattr(tuning, "installed_packages", lambda: installed)
    monkeypatch.setattr(gdn_external, "warmup", lambda space: None)
    monkeypatch.setattr(tuning, "_times", lambda space, name: {"1x8192": 50.0 if name == "fla" else 100.0})
    configs = [published_config("qwen3.5-2b"), published_config("qwen3.5-0.8b")]  # the same heads
    with dry.gpu("a100"):
        compared = tuning.compare_backends(configs, 600.0, on_tuning=lambda *event: None)
        assert [(e.family["backend"], e.gain) for e in compared.entries] == [("fla", 2.0)]
        assert any("flashinfer has no kernel for sm_80" in line for line in compared.lines)
        late = tuning.compare_backends(configs, 30.0, on_tuning=lambda *event: None)
        assert late.entries == () and "was not measured for" in late.lines[0]
        dims, table = gdn_dims(configs[0]), tile_tables.read_cached(current_target())
        choice = choose_prefill("auto", current_target(), dims, torch.bfloat16, installed, table)
    assert choice.name == "fla" and "2.00 times as fast as ours on NVIDIA A100" in choice.reason
