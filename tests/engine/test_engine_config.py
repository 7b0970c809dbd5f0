import pytest

from hotstart.config.engine import EngineConfig, options, parse_bytes, parse_count
from hotstart.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "number"), [("4096", 4096), ("4k", 4000), ("4K", 4096), ("1.5K", 1536), (7, 7), ("2M", 2 * 2**20)], ids=str
)
def test_counts_are_read_as_vllm_reads_them(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("4GiB", 4 * 2**30), ("4GB", 4 * 10**9), ("4G", 4 * 2**30), ("512 MiB", 2**29), ("0.5GiB", 2**29), (1000, 1000)],
    ids=str,
)
def test_sizes_are_read_with_their_unit(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "x", "-1", "4.0001", "4 Q", True, "1e9", "nan"], ids=str)
def test_nonsense_is_refused(text):
    for parse in (parse_count, parse_bytes):
        with pytest.raises(ConfigError):
            parse(text)


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        ({"max_model_len": 1}, "--max-model-len is 1, it must be at least 2"),
        ({"max_num_seqs": "many"}, "--max-num-seqs: 'many' is not a number"),
        ({"cpu_memory": "4 bananas"}, "--cpu-memory: '4 bananas' is not a size"),
        ({"dtype": "int3"}, "--dtype is 'int3', it must be one of"),
        ({"gdn_chunk_length": 48}, "--gdn-chunk-length is 48, it must be one of auto, 16"),
        ({"model": ""}, "model is empty"),
    ],
    ids=str,
)
def test_a_bad_wish_names_flag_value_and_limit(wish, word):
    with pytest.raises(ConfigError, match=word):
        EngineConfig(**{"model": "m", **wish})


def test_text_becomes_numbers_and_every_field_is_an_option():
    config = EngineConfig(model="m", max_model_len="4K", cpu_memory="1GiB", gdn_chunk_length=16)
    assert (config.max_model_len, config.cpu_memory, config.gdn_chunk_length) == (4096, 2**30, "16")
    names = {option.name for option in options()}
    assert names | {"model"} == set(EngineConfig.__slots__)
    assert all(option.help and option.flag.startswith("--") for option in options())
