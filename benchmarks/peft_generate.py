"""Hugging Face's `generate` behind PEFT's CARTRIDGE, for the comparison in `serving.py`."""

from collections.abc import Sequence

import torch
from peft import CartridgeConfig, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

from cartridges.cartridge import Cartridge
from cartridges.model import Model


class PeftGenerator:
    """A PEFT model for cartridges of one size; the one at work is exchanged in place, as PEFT's adapters are."""

    def __init__(self, model: Model, num_slots: int) -> None:
        about = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_slots, num_frozen_tokens=0)
        self.device, self.dtype = model.device, model.dtype
        self.model = get_peft_model(model.hf, about).eval().to(model.dtype)
        self.loaded: Cartridge | None = None

    @torch.inference_mode()
    def generate(self, cartridge: Cartridge, prompts: Sequence[Sequence[int]], num_new: int) -> list[list[int]]:
        """The new ids of the prompts, greedily, without a stop; shorter ones are padded at the left and masked."""
        if cartridge is not self.loaded:
            slots = [(key[None], value[None]) for key, value in zip(cartridge.keys, cartridge.values, strict=True)]
            initialize_kv_prefix_from_past_key_values(self.model, past_key_values=slots)
            self.loaded = cartridge
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        num_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=self.device)
        found_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=(torch.arange(longest, device=self.device) >= longest - num_B1).to(ids_BT.dtype),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return found_BT[:, ids_BT.shape[1] :].tolist()
