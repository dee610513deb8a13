"""Every text that users see is there in every language; English is what the schemas say."""

import json
import re
from pathlib import Path

import pytest
from make_en import english

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "ja")
# The front end's message format gives these a meaning of their own.
SPECIAL = set("{}@|")


def locale(language, name):
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def leaves(tree, path=()):
    """Return every text in nested mappings, by the path to it."""
    if isinstance(tree, str):
        return {path: tree}
    return {key: text for name, inner in tree.items() for key, text in leaves(inner, (*path, name)).items()}


@pytest.fixture(scope="module")
def schemas():
    return leaves(english())


def test_english_is_what_the_schemas_say():
    assert locale("en", "nodeDefs.json") == english(), "run: python tools/make_en.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_output_tooltip_and_option_has_a_text(language, schemas):
    own = leaves(locale(language, "nodeDefs.json"))
    missing = [".".join(path) for path in schemas.keys() - own.keys()]
    left_over = [".".join(path) for path in own.keys() - schemas.keys()]
    assert (sorted(missing), sorted(left_over)) == ([], [])


@pytest.mark.parametrize("language", LANGUAGES)
def test_own_words_and_category_have_a_text(language):
    own = leaves(locale(language, "main.json"))
    assert own.keys() == leaves(locale("en", "main.json")).keys()
    assert ("nodeCategories", "rollout") in own
    # All that the front end looks up of a pack's templates is what their group is called, by the name of the pack's
    # folder. A card's title is the file's name, and notes are what the file says: neither can be translated.
    assert ("templateWorkflows", "category", "rollout-trainer") in own


@pytest.mark.parametrize("name", ["nodeDefs.json", "main.json"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_holds_a_sign_that_the_front_end_interprets(language, name):
    bad = {path: t for path, t in leaves(locale(language, name)).items() if not t.strip() or SPECIAL & set(t)}
    assert bad == {}


def test_japanese_is_japanese(schemas):
    # Names and options may be terms (CFG, unipc); whole sentences may not be.
    own = leaves(locale("ja", "nodeDefs.json"))
    sentences = {path: text for path, text in own.items() if path[-1] in ("tooltip", "description")}
    assert [
        path
        for path, text in sentences.items()
        if not any("\u3040" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" for c in text)
    ] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(language):
    pages = {path.parent.name for path in (ROOT / "web" / "docs").glob(f"*/{language}.md")}
    assert pages == english().keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_shows_pictures_that_are_there(language):
    # The front end looks for the pictures of a pack from its `docs` folder on, not from the page's.
    docs = ROOT / "web" / "docs"
    for page in docs.glob(f"*/{language}.md"):
        named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        assert f"{page.parent.name}/node.png" in named, page
        assert [name for name in named if not (docs / name).is_file()] == [], page


def test_every_input_and_output_says_what_it_is_for(schemas):
    silent = [
        f"{path[0]}.{path[2]}"
        for path in schemas
        if path[1:2] in (("inputs",), ("outputs",)) and (*path[:3], "tooltip") not in schemas
    ]
    assert silent == []
