from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from localllama import gguf_tables
from localllama.errors import BadFile, InvalidGGUF, ModelNotFound, UnsupportedFile
from localllama.gguf_file import ModelInfo, read_info, read_info_from, read_split_info
from tests.support import gguf_maker as maker
from tests.support.gguf_mutations import anywhere, dissect, fatal, write_sparse

MEMORY_BYTES = 200 * 1000 * 1000

# Reads every file of a folder under the memory limit and prints a line for each; a refusal must
# be a BadFile with a message, anything else ends the child with a traceback.
READ_ALL = """
import json, resource, sys
from pathlib import Path
from localllama.errors import BadFile
from localllama.gguf_file import read_info
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    try:
        info = read_info(path)
        said = ""
        assert 0 < info.block_count <= 512 and info.context_length > 0 and info.parameters > 0
        assert all(0 <= t.offset < info.file_bytes for t in info.tensors)
    except BadFile as error:
        assert error.path == str(path)
        said = str(error)
    print(json.dumps({"name": path.name, "said": said}), flush=True)
"""

# What llama.cpp's own reader says of the same files; in a process of its own, for it may abort.
ASK_GGML = """
import ctypes, sys
from pathlib import Path
class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]
ggml = ctypes.CDLL(sys.argv[2])
ggml.gguf_init_from_file.restype = ctypes.c_void_p
ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    if ggml.gguf_init_from_file(str(path).encode(), Params(True, None)):
        print(path.name, flush=True)
"""


def run_child(script: str, *arguments: object) -> str:
    """Run a script and return what it printed; a minute means that it hangs."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def read_all(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in run_child(READ_ALL, folder, MEMORY_BYTES).splitlines()]
    return {line["name"]: line["said"] for line in lines}


def read_bytes(content: bytes) -> ModelInfo:
    return read_info_from(lambda offset, length: content[offset : offset + length], len(content))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return maker.write_tiny_llama(tmp_path / "tiny.gguf")[0]


def test_the_real_model_reads_as_the_gguf_package_reads_it(smollm2: Path) -> None:
    info, reference = read_info(smollm2), GGUFReader(smollm2)

    def value(key: str) -> object:
        return reference.fields[key].contents()

    assert info.architecture == value("general.architecture")
    assert info.name == value("general.name")
    assert info.context_length == value("llama.context_length")
    assert info.embedding_length == value("llama.embedding_length")
    assert info.block_count == value("llama.block_count")
    assert info.head_count == value("llama.attention.head_count")
    assert info.head_count_kv == value("llama.attention.head_count_kv")
    assert info.feed_forward_length == value("llama.feed_forward_length")
    assert info.chat_template == value("tokenizer.chat_template")
    assert info.bos_id == value("tokenizer.ggml.bos_token_id")
    assert info.eos_id == value("tokenizer.ggml.eos_token_id")
    assert info.add_bos == value("tokenizer.ggml.add_bos_token")
    assert info.licence == value("general.license")
    assert info.vocab_size == len(reference.fields["tokenizer.ggml.tokens"].data)
    assert info.quantization == "Q4_1"
    assert info.parameters_label == "135M"
    assert (info.key_length, info.value_length) == (64, 64)
    assert info.data_offset == reference.data_offset
    assert info.file_bytes == smollm2.stat().st_size
    assert list(info.metadata) == [key for key in reference.fields if not key.startswith("GGUF.")]
    assert info.metadata["tokenizer.ggml.tokens"] == "[49152 \N{MULTIPLICATION SIGN} string]"
    assert info.metadata["general.languages"] == ("en",)
    assert info.parameters == sum(int(tensor.n_elements) for tensor in reference.tensors)
    assert [
        (t.name, t.shape, t.type, t.offset + info.data_offset, t.size_bytes) for t in info.tensors
    ] == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in reference.tensors
    ]


def test_a_url_is_asked_for_few_blocks_inside_the_file(smollm2: Path) -> None:
    asked: list[tuple[int, int]] = []
    with smollm2.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            asked.append((offset, length))
            file.seek(offset)
            return file.read(length)

        size = smollm2.stat().st_size
        assert read_info_from(read, size) == read_info(smollm2)
    assert len(asked) <= 3
    assert all(offset >= 0 and offset + length <= size for offset, length in asked)


def test_a_vocabulary_that_crosses_blocks(tmp_path: Path) -> None:
    """Strings of every length around block borders: the items are walked, not sampled."""
    pieces = [f"piece {number} " + "x" * (number % 977) for number in range(9000)]

    def vocabulary(writer: GGUFWriter) -> None:
        writer.add_token_merges(pieces)

    path = maker.write_tiny_llama(tmp_path / "wide.gguf", extra=vocabulary)[0]
    info = read_info(path)
    assert info.metadata["tokenizer.ggml.merges"] == "[9000 \N{MULTIPLICATION SIGN} string]"
    assert info.data_offset == GGUFReader(path).data_offset > 4_000_000


def test_quantization_from_the_file_type_else_from_the_tensors(tmp_path: Path) -> None:
    def undeclared(writer: GGUFWriter) -> None:
        del writer.kv_data[0]["general.file_type"]

    q8 = GGMLQuantizationType.Q8_0
    declared = maker.write_tiny_llama(tmp_path / "a.gguf", quant=q8)[0]
    guessed = maker.write_tiny_llama(tmp_path / "b.gguf", quant=q8, extra=undeclared)[0]
    assert read_info(declared).quantization == read_info(guessed).quantization == "Q8_0"


def test_heads_that_differ_from_layer_to_layer(tmp_path: Path) -> None:
    def per_layer(writer: GGUFWriter) -> None:
        writer.add_key_length(16)
        writer.add_head_count_kv([2, 4])
        writer.add_feed_forward_length([128, 96])

    info = read_info(maker.write_tiny_llama(tmp_path / "t.gguf", extra=per_layer)[0])
    assert info.head_count_kv == (2, 4)
    assert info.feed_forward_length == (128, 96)


def test_sampling_keys_get_our_names(tmp_path: Path) -> None:
    def sampling(writer: GGUFWriter) -> None:
        writer.add_sampling_temp(0.5)
        writer.add_sampling_top_k(20)
        writer.add_sampling_penalty_last_n(128)
        writer.add_sampling_penalty_repeat(1.25)
        writer.add_sampling_mirostat(2)

    info = read_info(maker.write_tiny_llama(tmp_path / "t.gguf", extra=sampling)[0])
    assert info.sampling == {
        "temperature": 0.5,
        "top_k": 20,
        "repeat_last_n": 128,
        "repeat_penalty": 1.25,
    }


def test_licence_and_template(tmp_path: Path) -> None:
    def licence(writer: GGUFWriter) -> None:
        writer.add_license("llama2")
        writer.add_license_name("LLAMA 2 COMMUNITY LICENSE")
        writer.add_license_link("https://example.org/licence")

    template = "{{ messages[0]['content'] }}"
    path = maker.write_tiny_llama(tmp_path / "t.gguf", chat_template=template, extra=licence)[0]
    info = read_info(path)
    assert info.chat_template == template
    assert info.licence == "llama2"
    assert info.licence_name == "LLAMA 2 COMMUNITY LICENSE"
    assert info.licence_link == "https://example.org/licence"


@pytest.mark.parametrize(
    ("elements", "label"),
    [
        (135_000_000, "135M"),
        (6_738_415_616, "6.7B"),
        (7_000_000_000, "7B"),
        (13_015_864_320, "13B"),
        (999_600_000, "1B"),
        (1_500, "1.5K"),
        (32, "32"),
    ],
)
def test_the_label_of_a_size(elements: int, label: str) -> None:
    width = 32
    tensor = maker.tensor("w", (width, elements // width))
    info = read_from_hole(maker.gguf_bytes(maker.mamba_pairs(), [tensor]), elements * 4)
    assert info.parameters_label == label


def read_from_hole(header: bytes, data_bytes: int) -> ModelInfo:
    """As if the header were followed by so many bytes that nobody reads."""

    def read(offset: int, length: int) -> bytes:
        return header[offset : offset + length].ljust(length, b"\0")

    return read_info_from(read, len(header) + data_bytes)


def test_a_token_outside_the_vocabulary_is_none(tmp_path: Path) -> None:
    def no_bos(writer: GGUFWriter) -> None:
        writer.add_bos_token_id(0xFFFFFFFF)

    info = read_info(maker.write_tiny_llama(tmp_path / "t.gguf", extra=no_bos)[0])
    assert (info.bos_id, info.eos_id) == (None, 2)


def test_a_long_string_is_summarised(tmp_path: Path) -> None:
    def tokenizer(writer: GGUFWriter) -> None:
        writer.add_string("tokenizer.huggingface.json", "x" * 2_000_000)

    info = read_info(maker.write_tiny_llama(tmp_path / "t.gguf", extra=tokenizer)[0])
    assert info.metadata["tokenizer.huggingface.json"] == "[string of 2000000 bytes]"


# Split files


def test_the_parts_of_a_split_model_are_one_model(tiny: Path, tmp_path: Path) -> None:
    parts = maker.write_tiny_llama(tmp_path / "split.gguf", tensors_per_part=8)
    assert len(parts) == 3
    whole, merged = read_info(tiny), read_split_info(parts)
    assert merged.split_count == 3
    assert merged.parameters == whole.parameters
    assert {t.name: (t.shape, t.size_bytes) for t in merged.tensors} == {
        t.name: (t.shape, t.size_bytes) for t in whole.tensors
    }
    assert {t.part for t in merged.tensors} == {0, 1, 2}
    assert merged.file_bytes == sum(part.stat().st_size for part in parts)
    assert read_split_info([tiny]) == whole


def test_the_first_part_alone_says_that_it_is_one_of_several(tmp_path: Path) -> None:
    first, second, _ = maker.write_tiny_llama(tmp_path / "split.gguf", tensors_per_part=8)
    info = read_info(first)
    assert (info.split_count, len(info.tensors)) == (3, 8)
    with pytest.raises(UnsupportedFile, match="not the first part"):
        read_info(second)


def test_parts_that_are_missing_misplaced_or_foreign(tmp_path: Path) -> None:
    one, two, three = maker.write_tiny_llama(tmp_path / "a.gguf", tensors_per_part=8)
    with pytest.raises(InvalidGGUF, match="of 3 parts, and 2 were given"):
        read_split_info([one, two])
    with pytest.raises(InvalidGGUF, match="part 3 of 3, found in the place of part 2"):
        read_split_info([one, three, two])
    deeper = maker.write_tiny_llama(tmp_path / "b.gguf", layers=3, tensors_per_part=10)
    with pytest.raises(InvalidGGUF, match="does not fit the other parts"):
        read_split_info([one, two, deeper[2]])
    with pytest.raises(ModelNotFound):
        read_split_info([one, two, tmp_path / "gone.gguf"])
    os.truncate(three, three.stat().st_size - 64)
    with pytest.raises(InvalidGGUF, match="is cut") as caught:
        read_split_info([one, two, three])
    assert caught.value.path == str(three)


# Refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GG", "begins with b'GG'"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"tjgg\x03\0\0\0", "old GGJT format"),
        (b"lmgg", "old GGML format"),
        (b'{"error": "not found"}', "JSON document"),
        (b"\x40\0\0\0\0\0\0\0{}", "safetensors"),
        (bytes(4096), "all zeros"),
        (b"GGUF", "claims 4 bytes, and only 0 are left"),
        (b"GGUF\0\0\0\0" + bytes(16), "version 0"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidGGUF, match=message) as caught:
        read_info(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("version", "message"),
    [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")],
)
def test_versions_that_are_not_read(version: int, message: str) -> None:
    with pytest.raises(UnsupportedFile, match=message):
        read_bytes(maker.gguf_bytes(version=version))


def test_version_2_is_read() -> None:
    content = maker.gguf_bytes(
        maker.mamba_pairs(), [maker.tensor("w", (32,))], version=2, data_bytes=128
    )
    assert read_bytes(content).architecture == "mamba"


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no file"):
        read_info(tmp_path / "gone.gguf")
    with pytest.raises(UnsupportedFile, match="is a folder"):
        read_info(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UnsupportedFile, match="not a regular file"):
        read_info(tmp_path / "pipe.gguf")


def test_a_reader_that_returns_less_than_there_is() -> None:
    with pytest.raises(InvalidGGUF, match="ends early"):
        read_info_from(lambda offset, length: b"GGUF", 1000)


PAIRS = maker.mamba_pairs()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (maker.gguf_bytes(PAIRS, tensor_count=2**63), "tensors, and only"),
        (maker.gguf_bytes(PAIRS, pair_count=2**63), "keys, and only"),
        (maker.gguf_bytes(data_bytes=3_000_000, tensor_count=17_000), "more than the 16384"),
        (maker.gguf_bytes(data_bytes=3_000_000, pair_count=5_000), "more than the 4096"),
        (maker.gguf_bytes([struct.pack("<Q", 2**64 - 1) + bytes(64)]), "name of 184467440737"),
        (maker.gguf_bytes([struct.pack("<Q", 0) + bytes(64)]), "name of 0 bytes"),
        (maker.gguf_bytes([struct.pack("<Q", 1) + b"\xff" + bytes(64)]), "not UTF-8"),
        (maker.gguf_bytes([*PAIRS, PAIRS[0]]), "'general.architecture' occurs twice"),
        (maker.gguf_bytes([maker.pair("k", 13, bytes(64))]), "value type 13"),
        (maker.gguf_bytes([maker.pair("k", maker.BOOL, b"\2" + bytes(64))]), "bool with the value"),
        (maker.gguf_bytes([maker.pair("k", maker.STRING, b"\xff" * 8)]), "claims 1844674407370"),
        (maker.gguf_bytes([maker.array_pair("k", maker.ARRAY, 1, bytes(64))]), "value type 9"),
        (maker.gguf_bytes([maker.array_pair("k", maker.U8, 2**40)]), "array items, and only"),
        (maker.gguf_bytes([maker.array_pair("k", maker.STRING, 2**40)]), "array items, and only"),
        (
            maker.gguf_bytes([maker.array_pair("k", maker.U8, 5_000_000)], data_bytes=6_000_000),
            "more than the 3145728",
        ),
        (
            maker.gguf_bytes([maker.array_pair("k", maker.STRING, 9, b"\xff" * 80)]),
            "claims 1844674407370",
        ),
        (maker.gguf_bytes([maker.u32_pair("general.alignment", 48)]), "not a power of two"),
        (maker.gguf_bytes([maker.u32_pair("general.alignment", 0)]), "not a power of two"),
        (maker.gguf_bytes([maker.text_pair("general.alignment", "32")]), "is not a u32"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t" * 64, (32,))]), "name of 64 bytes"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", ())]), "has 0 dimensions"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", (1,) * 5)]), "has 5 dimensions"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", (32, 0))]), "impossible shape"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", (2**32, 2**32))]), "impossible shape"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", (33, 2), kind=2)]), "blocks of 32"),
        (maker.gguf_bytes(PAIRS, [maker.tensor("t", (32,), offset=32)]), "offset 32 instead of 0"),
        (
            maker.gguf_bytes(PAIRS, [maker.tensor("t", (32,)), maker.tensor("t", (32,))]),
            "'t' occurs twice",
        ),
        (
            maker.gguf_bytes(PAIRS, [maker.tensor("t", (32,)), maker.tensor("u", (32,))]),
            "'u' is at offset 0 instead of 128",
        ),
        (
            maker.gguf_bytes(PAIRS, [maker.tensor("t", (32,))], data_bytes=100),
            "28 bytes are missing of",
        ),
        (maker.gguf_bytes(PAIRS[1:]), "general.architecture is missing"),
        (
            maker.gguf_bytes([maker.u32_pair("general.architecture", 1)]),
            "is a u32, not a string",
        ),
    ],
)
def test_headers_that_cannot_be(content: bytes, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        read_bytes(content)


def one_tensor(*pairs: bytes, kind: int = 0) -> bytes:
    return maker.gguf_bytes([*pairs], [maker.tensor("t", (256,), kind)], data_bytes=1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one_tensor(maker.text_pair("general.architecture", "hal9000")), "architecture 'hal9000'"),
        (one_tensor(maker.text_pair("general.architecture", "clip")), "mmproj"),
        (one_tensor(*PAIRS, maker.text_pair("general.type", "adapter")), "adapter"),
        (maker.gguf_bytes(PAIRS), "vocabulary but no weights"),
        (one_tensor(*PAIRS, kind=31), "type Q4_0_4_4, which llama.cpp dropped"),
        (one_tensor(*PAIRS, kind=99), "unknown type 99"),
    ],
)
def test_sound_files_that_are_not_run(content: bytes, message: str) -> None:
    with pytest.raises(UnsupportedFile, match=message):
        read_bytes(content)


def test_required_keys() -> None:
    with pytest.raises(InvalidGGUF, match=r"mamba\.block_count is missing"):
        read_bytes(one_tensor(PAIRS[0], *PAIRS[2:]))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (maker.text_pair("mamba.block_count", "1"), "is a string, not a u32"),
        (maker.u32_pair("mamba.block_count", 600), "is 600, where 1 to 512"),
        (maker.u32_pair("mamba.context_length", 0), "is 0, where"),
        (
            maker.array_pair("mamba.attention.head_count_kv", maker.U32, 2, bytes(8)),
            "2 numbers for 1 layers",
        ),
        (
            maker.pair("general.sampling.temp", maker.F32, struct.pack("<f", float("nan"))),
            "not a finite number",
        ),
        (maker.text_pair("tokenizer.ggml.add_bos_token", "yes"), "is a string, not a bool"),
        (
            maker.array_pair("tokenizer.ggml.scores", maker.STRING, 0),
            "is an array of string, not an array of f32",
        ),
        (maker.text_pair("tokenizer.chat_template", "x" * (1 << 20) + "x"), "is 1048577 bytes"),
    ],
)
def test_values_that_cannot_be(pair: bytes, message: str) -> None:
    key = pair[8 : 8 + int.from_bytes(pair[:8], "little")]
    with pytest.raises(InvalidGGUF, match=message):
        read_bytes(one_tensor(*(other for other in PAIRS if key not in other), pair))


def test_a_vocabulary_with_too_few_scores(tmp_path: Path) -> None:
    def one_score(writer: GGUFWriter) -> None:
        writer.add_token_scores([0.0])

    path = maker.write_tiny_llama(tmp_path / "t.gguf", extra=one_score)[0]
    with pytest.raises(InvalidGGUF, match=r"scores has 1 items for 286 tokens"):
        read_info(path)


def test_a_llama_whose_keys_and_weights_disagree(tmp_path: Path) -> None:
    def more_layers(writer: GGUFWriter) -> None:
        writer.add_block_count(3)

    def more_heads(writer: GGUFWriter) -> None:
        writer.add_head_count_kv(4)

    deeper = maker.write_tiny_llama(tmp_path / "a.gguf", extra=more_layers)[0]
    with pytest.raises(InvalidGGUF, match="is 3, but 2 blocks have weights"):
        read_info(deeper)
    wider = maker.write_tiny_llama(tmp_path / "b.gguf", extra=more_heads)[0]
    with pytest.raises(InvalidGGUF, match=r"blk\.0\.attn_k\.weight has the shape"):
        read_info(wider)


# Damage


def test_damaged_headers_are_refused(tiny: Path, smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    what: dict[str, str] = {}
    for prefix, path in (("tiny", tiny), ("real", smollm2)):
        for number, (done, header, size) in enumerate(fatal(dissect(path), seed=1, count=35)):
            name = f"{prefix}-{number:02}.gguf"
            what[name] = done
            write_sparse(folder / name, header, size)
    said = read_all(folder)
    assert said.keys() == what.keys()
    assert [what[name] for name in said if not said[name]] == []


def test_random_bit_flips_are_read_or_refused_and_refused_where_ggml_refuses(
    tiny: Path, tmp_path: Path
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))
    folder = tmp_path / "flipped"
    folder.mkdir()
    what: dict[str, str] = {}
    for number, (done, header, size) in enumerate(anywhere(dissect(tiny), seed=2, count=300)):
        what[f"{number:03}.gguf"] = done
        write_sparse(folder / f"{number:03}.gguf", header, size)
    said = read_all(folder)
    accepted = set(run_child(ASK_GGML, folder, library).split())
    assert said.keys() == what.keys()
    assert accepted
    assert [what[name] for name in said if not said[name] and name not in accepted] == []


def test_hostile_headers_stay_small(tmp_path: Path) -> None:
    """Every limit nearly reached: what is kept fits into the memory limit."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    weight = [maker.tensor("t", (32,))]
    zeros = maker.array_pair("z", maker.STRING, 3_000_000, bytes(24_000_000))
    texts = [maker.text_pair(f"t{n}", "\N{GRINNING FACE}" + "a" * 900_000) for n in range(20)]
    numbers = [maker.array_pair(f"n{n}", maker.U64, 500, b"\xff" * 4000) for n in range(900)]
    tensors = [maker.tensor(f"{n:063}", (300,) * 4, maker.I8, 300**4 * n) for n in range(16_000)]
    contents = {
        "strings": maker.gguf_bytes([*PAIRS, zeros], weight, data_bytes=128),
        "texts": maker.gguf_bytes([*PAIRS, *texts[:12]], tensors),
        "numbers": maker.gguf_bytes([*PAIRS, *numbers[:800]], weight, data_bytes=128),
        "too much text": maker.gguf_bytes([*PAIRS, *texts]),
        "too many numbers": maker.gguf_bytes([*PAIRS, *numbers]),
    }
    for name, content in contents.items():
        (folder / f"{name}.gguf").write_bytes(content)
    said = read_all(folder)
    assert said["strings.gguf"] == said["numbers.gguf"] == ""
    assert "are missing of" in said["texts.gguf"]
    assert "to more than 16777216 bytes" in said["too much text.gguf"]
    assert "to more than 16777216 bytes" in said["too many numbers.gguf"]


# Tables


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    ours = {number: tuple(kind) for number, kind in gguf_tables.TENSOR_TYPES.items()}
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert theirs.items() <= ours.items()
