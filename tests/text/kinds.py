"""One small vocabulary of every kind, made without files."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jtok.text import Vocabulary

CORPUS = [
    "the cat sat on the mat; the hat is the cat's",
    "def f(x):\n    return x + 10",
    "Der Käse ist größer, 東京 🙂",
]
TEXTS = [*CORPUS, "", " ", "  two  spaces ", "naïve café", "\t\n\r\n", "a\u2581b", "🙂"]


def byte_bpe(size=300):
    return Vocabulary.train_bpe(CORPUS, size)


def metaspace_bpe():
    """Llama 2's arrangement: BOS, `<0xNN>`, and a metaspace before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "t", "h", "e", "c", "a", "▁t", "▁th", "▁the", "▁c", "▁ca"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("▁c", "a")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    roles = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    return Vocabulary.from_json(tokenizer.to_str(), roles)


def wordpiece():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "s", "##ing"]
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(
            {piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return Vocabulary.from_json(tokenizer.to_str(), {"pad_token": "[PAD]"})


def unigram():
    pieces = [("<unk>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("cat", -2.5)]
    pieces += [(letter, -4.0) for letter in "thecas"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return Vocabulary.from_json(tokenizer.to_str())


def wordlevel():
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({"[UNK]": 0, "the": 1, "cat": 4}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Vocabulary.from_json(tokenizer.to_str())


KINDS = {
    "byte_bpe": byte_bpe,
    "sentencepiece_bpe": metaspace_bpe,
    "wordpiece": wordpiece,
    "unigram": unigram,
    "wordlevel": wordlevel,
}
