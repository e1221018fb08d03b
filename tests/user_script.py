"What a user of the library writes: a model of memory layers is built, trained on a text, fed in pieces with its memory carried, and saved. Type checkers find nothing in it."
from pathlib import Path

import torch
from torch import Tensor

from memlab.data.corpus import Corpus, Document
from memlab.data.tokens import TokenStore, byte_tokenizer, shift, windows
from memlab.nn.delta import DeltaNet, DeltaNetConfig
from memlab.nn.generate import generate
from memlab.nn.init import init_parameters
from memlab.nn.lm import TransformerLM
from memlab.nn.memory import load_memory, save_memory
from memlab.nn.mixer_lm import MixerLMConfig, mixer_config
from memlab.train.losses import Summed, lm_loss
from memlab.train.loop import FitConfig, fit_model
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Cosine


def layer() -> tuple[DeltaNet, Tensor]:
    "One memory layer by itself, fed in two pieces."
    memory = init_parameters(DeltaNetConfig(d_model=32, n_heads=2).build(), seed=0)
    x = torch.randn(2, 20, 32)
    first, state = memory(x[:, :12])
    rest, state = memory(x[:, 12:], state.detach())
    assert memory.state_size(20) > 0 and state.batch == 2
    return memory, torch.cat([first, rest], 1)


def trained(store: TokenStore, folder: Path) -> TransformerLM:
    "A language model of two kinds of memory after a few steps, with a checkpoint in a folder."
    mixers = (mixer_config("delta", d_model=32, n_heads=2), mixer_config("attention", d_model=32, n_heads=2))
    model = MixerLMConfig(vocab_size=store.vocab_size, mixers=mixers).build(seed=1)

    def batch(step: int) -> Tensor: return windows(store, batch=4, length=16, seed=0, step=step).ids

    def loss(model: TransformerLM, ids: Tensor) -> Summed: return lm_loss(model, *shift(ids))

    result = fit_model(model, batch, loss, FitConfig(steps=4, optimizer=AdamWConfig(lr=1e-2), schedule=Cosine(warmup=1)), folder=folder)
    losses = [r["value"] for r in result.records if r["metric"] == "loss"]
    assert result.status == "finished" and losses[-1] < losses[0]
    return model


def carried(model: TransformerLM, text: Tensor, file: Path) -> Tensor:
    "The text is read in pieces and what it leaves is saved; another process could go on from the file."
    memory = None
    with torch.no_grad():
        for piece in text.split(7, dim=1): _, memory = model(piece, memory)
    assert memory is not None
    save_memory(file, model, memory)
    return generate(model, text[:, -1:], 5, memory=load_memory(file, model)).ids


def main(folder: Path) -> str:
    "All of it; returns what was written."
    tokenizer = byte_tokenizer()
    store = TokenStore.build(Corpus("mine", [Document(f"text {i}", f"the {i}th text says so. " * 8) for i in range(8)]), tokenizer)
    _, read = layer()
    model = trained(store, folder / "run")
    text = torch.tensor(tokenizer.encode("the 3rd text says"), dtype=torch.long)[None]
    written = carried(model, text, folder / "memory.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    assert read.shape == (2, 20, 32)
    return tokenizer.decode(written[0])


if __name__ == "__main__":
    import sys
    print(repr(main(Path(sys.argv[1]))))
