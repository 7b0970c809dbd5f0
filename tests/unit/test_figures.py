"""The documents tell the figures of bench/results: whichever of them is changed, the check fails."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bench import figures, figures_gpu, figures_proofs, figures_table, figures_told

SENTENCES = [("It takes {} us,\nand {} at most", lambda: ["1.5", "20"])]
DOCUMENT = "Before. It takes 1.4 us, and 300\nat most. After: 1.4 us."


def test_figures_in_a_sentence_are_written_where_they_stand() -> None:
    written = figures_told.told(DOCUMENT, SENTENCES, "x.md")
    assert written == "Before. It takes 1.5 us, and 20\nat most. After: 1.4 us."
    assert figures_told.told(written, SENTENCES, "x.md") == written


@pytest.mark.parametrize("document", ["It took 1.4 us, and 300 at most.", DOCUMENT + DOCUMENT])
def test_a_sentence_that_is_not_there_once_is_a_mistake(document: str) -> None:
    with pytest.raises(AssertionError, match=r"x\.md has [02] times: It takes"):
        figures_told.told(document, SENTENCES, "x.md")


@pytest.mark.parametrize("name", figures.everything())
def test_a_digit_that_differs_is_found_wherever_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of every section, sentence and picture: the check fails, and the figures are written as they were."""
    text = (figures.ROOT / name).read_text()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["figures", "--check"])
    monkeypatch.setattr(figures, "everything", lambda: {name: figures.text_of(name)})
    for place in places(name, text):
        digit = next(re.finditer(r"\d", text[place:])).start() + place
        (tmp_path / name).write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
        assert figures.text_of(name) == text
    with pytest.raises(SystemExit, match=f"{name} differs from bench/results"):
        figures.main()
    (tmp_path / name).write_text(text)
    figures.main()


def places(name: str, text: str) -> list[int]:
    """Before a figure of each kind."""
    if name in figures.PICTURES:
        return [text.index(">", text.index("<text"))]
    found = [text.index(f"<!-- {section} -->") + len(section) + 9 for section in figures.DOCUMENTS.get(name, {})]
    for sentence, _ in figures_told.TOLD.get(name, ()):
        (place,) = re.finditer(figures_told.pattern(sentence), text)
        found += [place.start(group + 1) for group in range(len(place.groups()))]
    return found


@pytest.mark.parametrize(
    "wrong", [{"num_late": 1}, {"throughput": {"64x512/128": {"errors": ["out of memory"]}}}], ids=str
)
def test_a_record_with_failures_is_no_record_of_speed(
    wrong: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(figures_gpu.RESULTS / "table", tmp_path / "table")
    for module in (figures_gpu, figures_table):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    path = tmp_path / "table" / "4b.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(AssertionError, match="no speed: requests of table/4b failed"):
        figures_table.targets()


def test_a_record_that_changes_changes_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, before = tmp_path / "results", figures.everything()
    shutil.copytree(figures_gpu.RESULTS, results)
    for module in (figures_gpu, figures_proofs, figures_table, figures_told):
        monkeypatch.setattr(module, "RESULTS", results)
    peers = results / "peers_h200.json"
    peers.write_text(peers.read_text().replace('"seconds": 33.5', '"seconds": 34.5'))
    changed = {name for name, text in figures.everything().items() if text != before[name]}
    assert changed == {"docs/WARMUP.md"}
