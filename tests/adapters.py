"""What tests of adapters share: conversations about a document, a plain MLP, and Hugging Face's own forward pass."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Starcoder2Config, Starcoder2ForCausalLM

from cartridges.adapter import AdapterManifest, Patch, ThoughtAdapter
from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.mlp import block_output, decoder_blocks, mlp_of
from cartridges.model import Model, identify
from cartridges.pairs import Source
from cartridges.study_plan import SynthesizeConfig
from cartridges.template import ChatFormat
from tests.architectures import SHAPE

TEXT = "The ward has nine beds and one door. Room four holds Ada Lovis. The cook is called Bo. "
CORPUS = Corpus.from_texts({"ward.txt": TEXT, "firm.txt": "The firm sells copper wire to seven towns. " * 2})
STUDY = SynthesizeConfig.resolve("pocket")
ASKED = ["How many beds has the ward?", "Who is in room four?", "Who cooks?", "What is sold?", "To how many towns?"]


def plain(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Model:
    """A random model with plain, biased MLPs, each behind a norm."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    torch.manual_seed(seed)
    options = {"use_bias": True, "sliding_window": None, "residual_dropout": 0.0, "embedding_dropout": 0.0}
    hf = Starcoder2ForCausalLM(Starcoder2Config(**shape, **ids, **options, vocab_size=len(tokenizer)))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    hf.eval().requires_grad_(False)
    chat = ChatFormat(tokenizer)
    return Model(hf, tokenizer, chat, identify(hf, chat, "tiny-plain", None), 1024)


def conversation(model: Model, index: int, num_answer: int = 6, document: str = "ward.txt") -> Conversation:
    """One about a part of a document, or about nothing, with a random answer."""
    messages = [{"role": "user", "content": f"{ASKED[index % len(ASKED)]} {index}"}]
    prompt, rng = model.chat.prompt(messages), np.random.default_rng(index)
    answer = rng.integers(10, model.identity.vocab_size, num_answer)
    positions = np.arange(len(prompt), len(prompt) + num_answer)
    teacher = TopK(answer[:, None].astype(np.int32), np.full((num_answer, 1), -0.1, np.float32))
    messages = [*messages, {"role": "assistant", "content": "so"}]
    start, stop = (0, 60) if document else (0, 0)
    kind = "question" if document else "general"
    ids = np.concatenate([prompt, answer])
    return Conversation(index, messages, ids, positions, teacher, document, start, stop, kind, 10, num_answer)


def source(model: Model, num: int = 12, num_answer: int = 6, weight: float = 1.0) -> Source:
    """Conversations about two documents, and some about none."""
    documents = ["ward.txt", "ward.txt", "firm.txt", ""]
    talks = [conversation(model, index, num_answer, documents[index * 4 // num]) for index in range(num)]
    return Source(Dataset.from_conversations(talks), CORPUS, STUDY, weight)


def both_ids(model: Model, talk: Conversation) -> tuple[list[int], list[int]]:
    """The ids that the teacher read, and those of the student."""
    user, ids, system = talk.messages[:1], talk.token_ids.tolist(), []
    if talk.document:
        system = [{"role": "system", "content": CORPUS.document(talk.document).text[talk.start : talk.stop]}]
    answer = ids[len(model.chat.prompt(user)) :]
    return [*model.chat.prompt([*system, *user]), *answer], ids


@torch.no_grad()
def block_outputs(model: Model, ids: list[int], layer: int) -> torch.Tensor:
    """What layer `layer` gives in Hugging Face's own forward pass, [T, D]."""
    found = []
    block = decoder_blocks(model)[layer]
    handle = block.register_forward_hook(lambda module, args, output: found.append(block_output(output)[0]))
    try:
        model.hf(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def logits(model: Model, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of Hugging Face's own forward pass."""
    return model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def random_adapter(model: Model, seed: int = 0, bias: bool = False, rank: int | None = None) -> ThoughtAdapter:
    """Patches of the last matrix of every MLP, large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    patches = []
    for index in range(model.num_layers):
        mlp = mlp_of(model, index)
        outputs, inputs = mlp.output.out_features, mlp.output.in_features

        def random(*shape: int) -> torch.Tensor:
            return 0.2 * torch.randn(*shape, generator=draw)

        parts = {"delta": random(outputs, inputs)}
        if rank is not None:
            parts = {"left": random(outputs, rank), "right": random(rank, inputs)}
        if bias:
            parts["bias"] = random(outputs)
        patches.append(Patch(index, mlp.output_name, outputs, inputs, **parts))
    manifest = AdapterManifest(name=f"adapter-{seed}", model=model.identity, patches=[patch.shape for patch in patches])
    return ThoughtAdapter(patches, manifest).sealed()
