"""Bases small enough to build in a second, of every family, with tokenizers trained here; and runs over them."""

import torch
from tests.conftest import TINY_CHATML, TINY_TEXT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tunesmith.base.adapter import attach
from tunesmith.base.catalog import resolve
from tunesmith.base.gguf_split import SPLITS, TEXTS
from tunesmith.base.load import choose_compute, load_model
from tunesmith.base.templates import PHI3
from tunesmith.base.tokenizer import load_tokenizer
from tunesmith.data.render import Renderer
from tunesmith.export.adapter import save_adapter
from tunesmith.generate.session import Session
from tunesmith.recipe import Recipe

CORPUS = [TINY_TEXT, *TEXTS]
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }} {{ eos_token }}"
    "{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)


def byte_level(pre="gpt-2", normalizer=None, whole=False):
    """Byte-level BPE that splits text as llama.cpp's pre-tokenizer of this name."""
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in SPLITS[pre]]
    bpe = Tokenizer(models.BPE(ignore_merges=whole))
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TINY_CHATML
    return made


def sentencepiece(controls=(), stripping=(), template=LLAMA2, eos="</s>", scheme=None):
    """SentencePiece's BPE as tokenizer.json has it: byte fallback, a space before all that follows a special token, and every
    merge that leads to a piece. scheme: spaces by Metaspace's scheme instead. stripping: tokens that drop white space behind."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    latin = [text for text in CORPUS if text.isascii()]  # what else there is in texts is spelled in bytes
    trained.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {text: number for number, text in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *pieces]))}
    cuts = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
    merges = [(left, right) for left, right in cuts if left in vocab and right in vocab]
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme is None:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(spaces)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    known = ["<unk>", "<s>", "</s>", *controls]
    bpe.add_special_tokens([AddedToken(text, normalized=False, special=True, rstrip=text in stripping) for text in known])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=eos, unk_token="<unk>", pad_token="<unk>")
    made.chat_template = template
    return made


def phi3_tokenizer():
    """As Phi-3's: conversations begin without BOS, and its tokens drop the white space behind them."""
    controls = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    return sentencepiece(controls, ["</s>", *controls[1:]], PHI3.replace("{{ eos_token }}", ""), "<|endoftext|>")


def save_base(folder, family, tokenizer, **settings):
    """A random model of this family and its tokenizer. Its embedding has more rows than there are tokens, as real ones do."""
    sizes = {
        "vocab_size": len(tokenizer) + 5, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | settings))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # as they come they are zeros and ones, and none would be missed
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_run(folder, base, scale=0.1, **settings):
    """A run's folder with an adapter of random values over this base."""
    recipe = Recipe.of({"model_name_or_path": str(base), "device": "cpu", "dtype": "float32", **settings})
    source = resolve(str(base))
    model = attach(load_model(source, recipe, choose_compute(recipe)), recipe, source.base, None)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    renderer = Renderer(load_tokenizer(source))
    save_adapter(model, renderer.tokenizer, Session(model, renderer).stop_ids, folder)
    recipe.write(folder / "run.yaml")
    return folder
