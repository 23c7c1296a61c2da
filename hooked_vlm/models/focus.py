"""One stack as a TransformerLens model, everything else held fixed.

`FocusedStack` satisfies `transformer_lens.model_protocol.TransformerLensModelWithWeights`: tokens in, logits
out, hook points named `blocks.<l>...`. TransformerLens' `patching`, `head_detector` and `ActivationCache` run
on it unchanged. Cost: every run is a run of the whole model; for sweeps over thousands of sites resume instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformer_lens.config import TransformerLensConfig

from hooked_vlm.components.embed import VisionStack
from hooked_vlm.errors import HookNameError, InputsError, ResidualError
from hooked_vlm.models.cache import StackCache, VLMCache, cut, sliced
from hooked_vlm.models.hooking import pairs
from hooked_vlm.models.inputs import VLMInputs

if TYPE_CHECKING:
    import hooked_vlm.models.base  # named in full, as run-time checks look a name up that is not imported


class Renamed:
    """A hook point as a view's hook functions see it: under its name in the view."""

    def __init__(self, name: str, point: Any) -> None:
        self.name, self._point = name, point

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._point, attribute)


class FocusedStack:
    """A view of one stack.

    What the tokens are depends on the stack: the prompt for the text encoder and the language model; the
    answer so far for BLIP's answer decoder; for a vision encoder, ids that stand for images, [batch pos] with
    one entry for each position (`view.to_tokens(images)`).

    Args:
        model: a `HookedVLM`.
        name: the stack.
        images: what text stacks see in every run; one, or one for each row.
        texts: what the other stacks are asked in every run; one, or one for each row.

    Raises:
        StackNameError: if the model has no such stack.
    """

    def __init__(
        self, model: hooked_vlm.models.base.HookedVLM, name: str, images: Any = None, texts: Any = None
    ) -> None:
        self.model, self.name, self.stack = model, name, model.stacks[name]
        self._images, self._texts = images, texts
        self._seen: list[Tensor] = []  # pixel values of the images that stand for ids (vision encoder)
        self.blocks = self.stack.blocks
        # TransformerLens' flag for hook_mlp_in, which fires here whatever it says; see set_use_hook_mlp_in
        self.cfg.use_hook_mlp_in = not self.stack.post_norm  # type: ignore[attr-defined]
        self._full_names = self._name_hooks()
        self.hook_dict = {short: model.hook_dict[full] for short, full in self._full_names.items()}

    def _name_hooks(self) -> dict[str, str]:
        """The model's names of this view's hook points."""
        prefix = self.stack.prefix
        starts = ("blocks.", "ln_final.", "hook_embed", "hook_pos_embed", "ln_pre.", "ln_embed.")
        shorts = [n.removeprefix(prefix) for n in self.model.hook_dict if n.startswith(prefix)]
        names = {n: prefix + n for n in shorts if n.startswith(starts)}
        if not self.stack.post_norm and (self.name == self.model.main_stack or "ln_pre" in self.stack._modules):
            # Images are merged, or a norm stands, between the embedding and the first block: what the residual
            # stream begins with, and decompositions must begin with, is what the first block receives.
            names["hook_embed"] = prefix + "blocks.0.hook_resid_pre"
            names.pop("hook_pos_embed", None)
        return names

    @property
    def cfg(self) -> TransformerLensConfig:
        """The stack's config."""
        return self.stack.cfg

    @property
    def makes_logits(self) -> bool:
        """True if the logits are read from this stack's residual stream, through `ln_final` and `W_U` alone."""
        return self.name == self.model.main_stack

    @property
    def ln_final(self) -> nn.Module:
        """The norm after the last block.

        Raises:
            AttributeError: if the stack has none that its output passes.
        """
        owner = self.model if self.name == self.model.main_stack else self.stack
        norm = owner._modules.get("ln_final")
        if norm is None:
            raise AttributeError(f"no norm follows the last block of {self.name}")
        return norm

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights. Raises ResidualError where the logits are not read from this stack alone."""
        self._need_logits("W_U")
        return self.model.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias. Raises ResidualError where the logits are not read from this stack alone."""
        self._need_logits("b_U")
        return self.model.b_U

    # --- running ------------------------------------------------------------------------------------

    def __call__(self, tokens: Any, return_type: Any = "logits", **options: Any) -> Any:
        """The whole model's output for these tokens, the rest held fixed; a `stop_at_layer` is one of this stack."""
        return self.model(self.to_inputs(tokens), return_type, **self._options(options))

    forward = __call__

    def run_with_hooks(self, tokens: Any, *args: Any, fwd_hooks: Any = (), bwd_hooks: Any = (), **options: Any) -> Any:
        """As the model's, with this view's names."""
        return self.model.run_with_hooks(
            self.to_inputs(tokens),
            *args,
            fwd_hooks=self._full(fwd_hooks),
            bwd_hooks=self._full(bwd_hooks),
            **self._options(options),
        )

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), **options: Any) -> Any:
        """As the model's, with this view's names."""
        return self.model.hooks(self._full(fwd_hooks), self._full(bwd_hooks), **options)

    def run_with_cache(
        self, tokens: Any, *args: Any, names_filter: Any = None, **options: Any
    ) -> tuple[Any, StackCache]:
        """As the model's, with this view's names and this stack's activations alone."""
        names_filter = (lambda _: True) if names_filter is None else names_filter
        names: Any = [full for _, full in self._matching(names_filter)]
        if callable(names_filter):
            names = set(names).__contains__
        own_slice = options.pop("pos_slice", None) if self.name != self.model.prompt_stack else None
        inputs, options = self.to_inputs(tokens), self._options(options)
        out, cache = self.model.run_with_cache(inputs, *args, names_filter=names, **options)
        if own_slice is not None:  # the model slices its prompt's positions; here they are this stack's
            for full, activation in cache.cache_dict.items():
                points = self.model.hook_dict[full.removesuffix("_grad")]
                cache.cache_dict[full] = sliced(activation, points, cut(own_slice), cache.has_batch_dim)
        return out, self.cache_of(cache)

    def cache_of(self, cache: VLMCache) -> StackCache:
        """This stack's part of a cache of the whole model."""
        found = {
            short + suffix: cache.cache_dict[full + suffix]
            for short, full in self._full_names.items()
            for suffix in ("", "_grad")
            if full + suffix in cache.cache_dict
        }
        return StackCache(found, self, has_batch_dim=cache.has_batch_dim)

    def _matching(self, name: Any) -> list[tuple[str, str]]:
        """What a name, a list or a filter means here: names in this view, and in the model."""
        if callable(name):
            pairs = [(short, full) for short, full in self._full_names.items() if name(short)]
            if not pairs:
                raise HookNameError(f"the filter matches none of the hook points of {self.name}")
            live = set(self.model.hook_names(lambda full: full in dict(pairs).values()))
            return [(short, full) for short, full in pairs if full in live]
        if not isinstance(name, Iterable):
            self.model.hook_names(name)  # raises
        shorts = [name] if isinstance(name, str) else list(name)
        pairs = [(short, self._full_names.get(short, self.stack.prefix + short)) for short in shorts]
        self.model.hook_names([full for _, full in pairs])
        return pairs

    def _full(self, hooks: Sequence[Any]) -> list[Any]:
        full: list[Any] = []
        for name, fn in pairs(hooks, "hooks"):
            shorts: dict[str, list[str]] = {}
            for short, of_model in self._matching(name):
                shorts.setdefault(of_model, []).append(short)
            call = _renaming(fn, shorts)
            full += [(shorts.__contains__, call)] if callable(name) else [(one, call) for one in shorts]
        return full

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a run, as the model's: a layer to stop at is this stack's."""
        stop = options.get("stop_at_layer")
        if stop is None or isinstance(stop, (tuple, list)):
            return options
        return {**options, "stop_at_layer": (self.name, stop)}

    # --- tokens -------------------------------------------------------------------------------------

    def to_tokens(self, given: Any, **options: Any) -> Int[Tensor, "batch pos"]:
        """What this view runs on, as [batch pos]: see the class."""
        if isinstance(given, Tensor) and not given.is_floating_point() and given.ndim == 2:
            return given
        if isinstance(self.stack, VisionStack):
            pixels = self.model.to_pixels(given)
            with self.model.reading.taken(running=True):  # or two threads' images would get the same ids
                ids = torch.arange(len(self._seen), len(self._seen) + len(pixels), device=pixels.device)
                self._seen += list(pixels)
            n_positions = self.stack.embed(pixels[:1]).shape[1]
            return ids[:, None].repeat(1, n_positions)
        if self.name == self.model.prompt_stack and self._images is not None:
            return self.model.to_inputs(self._images, given).input_ids
        return self.model.to_tokens(given, **options)

    def to_inputs(self, tokens: Any) -> VLMInputs:
        """The whole model's inputs for this view's tokens.

        Raises:
            InputsError: if the view holds no image or text that such a run needs.
        """
        tokens = self.to_tokens(tokens).to(self.model.device)
        if isinstance(self.stack, VisionStack):
            if self._texts is None:
                raise InputsError(
                    "a vision encoder is run for a text: model.focus('vision_encoder', texts='a question?')"
                )
            pixels = torch.stack([self._image(i) for i in tokens[:, 0].tolist()])
            asked = self.model.to_inputs(Image.new("RGB", (64, 64)), self._texts)
            return self._for_rows(asked, len(pixels)).replace(pixel_values=pixels)
        if self._images is None:
            raise InputsError(f"{self.name} is run on an image: model.focus({self.name!r}, images=image)")
        if self.name == self.model.prompt_stack:
            pixels = self.model.to_pixels(self._images)
            if len(pixels) not in (1, len(tokens)):
                raise InputsError(
                    f"{len(tokens)} rows of tokens, and the view holds {len(pixels)} images: hold one, or as many"
                )
            pixels = pixels.expand(len(tokens), -1, -1, -1)
            return VLMInputs(pixels, tokens, self._padding(tokens), layout=self.model.layout)
        if self._texts is None:
            raise InputsError(
                f"{self.name} answers a text: model.focus({self.name!r}, images=image, texts='a question?')"
            )
        asked = self.model.to_inputs(self._images, self._texts)
        return self._for_rows(asked, len(tokens)).replace(decoder_input_ids=tokens)

    def _image(self, i: int) -> Tensor:
        """The pixels that an id stands for."""
        if not 0 <= i < len(self._seen):
            raise InputsError(
                f"the id {i} stands for no image of this view, which has seen {len(self._seen)}: make ids with "
                "view.to_tokens(images)"
            )
        return self._seen[i]

    @staticmethod
    def _for_rows(held: VLMInputs, n: int) -> VLMInputs:
        if len(held) not in (1, n):
            raise InputsError(f"{n} rows of tokens, and the view holds {len(held)} images or texts: hold one, or {n}")
        return held if len(held) == n else held.repeat(n)

    def _padding(self, tokens: Tensor) -> Tensor | None:
        """1 from each row's first token that is not the padding's to its last: one inside a prompt is a token of it."""
        pad = getattr(getattr(self.model.processor, "tokenizer", None), "pad_token_id", None)
        if pad is None:
            return None
        said = (tokens != pad).long()
        return said.cummax(1).values * said.flip(1).cummax(1).values.flip(1)

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.model.tokenizer

    def to_single_token(self, text: str) -> int:
        """As the model's."""
        return self.model.to_single_token(text)

    def to_single_str_token(self, token: int) -> str:
        """As the model's."""
        return self.model.to_single_str_token(token)

    def to_string(self, tokens: Any) -> Any:
        """As the model's."""
        return self.model.to_string(tokens)

    def to_str_tokens(self, given: Any, **options: Any) -> Any:
        """As the model's."""
        return self.model.to_str_tokens(given, **options)

    # --- what ActivationCache needs of the weights --------------------------------------------------

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Directions in the (scaled, centred) residual stream whose product with it is the token's logit.

        The final norm's weight is folded in, so that `cache.logit_attrs` sums to the logits; with a bias in
        the norm or the unembedding, to the logits less that constant.

        Args:
            tokens: a string, an id, or ids [batch] or [batch pos].

        Returns:
            [d_model], [batch d_model] or [batch pos d_model].

        Raises:
            ResidualError: if the logits are not read from this stack.
        """
        self._need_logits("tokens_to_residual_directions")
        ids = torch.as_tensor(self.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        return self.W_U.T[ids.to(self.W_U.device)] * self.ln_final.w  # type: ignore[operator]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The sum of the output biases of all attentions (and MLPs) before a layer.

        Args:
            layer: biases of layers before this one are counted; -1 for all.
            mlp_input: also count this layer's attention bias.
            include_mlp_biases: count the MLPs' too.
        """
        layer = self.cfg.n_layers if layer in (-1, None) else layer
        total = torch.zeros(self.cfg.d_model, device=self.model.device, dtype=self.model.dtype)
        for i, block in enumerate(self.blocks[: layer + mlp_input]):
            total = total + block.attn.b_O
            if include_mlp_biases and i < layer:
                total = total + block.mlp.b_out
        return total

    def set_use_attn_result(self, on: bool) -> None:
        """Set `cfg.use_attn_result` in this stack."""
        self.cfg.use_attn_result = on

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Set `cfg.use_split_qkv_input` in this stack."""
        self.cfg.use_split_qkv_input = on

    def set_use_hook_mlp_in(self, on: bool) -> None:
        """Nothing to set where `hook_mlp_in` can be asked for an edge's end: it always fires.

        Raises:
            ResidualError: if it is asked for in a post-norm stack, where what one head writes and another reads do
                not add up, so that the scores of edges would not sum to those of nodes.
        """
        if on and self.stack.post_norm:
            raise ResidualError(
                f"edges between parts of the residual stream do not add up in {self.name}: it is post-norm, so that "
                "each block receives a norm of the sum; take nodes, or hooked_vlm.patching.path_patching"
            )

    def _need_logits(self, what: str) -> None:
        if not self.makes_logits:
            raise ResidualError(f"{what} is not offered in {self.name}: the logits are not read from its stream alone")

    def __repr__(self) -> str:
        shape = f"{self.cfg.n_layers} layers x {self.cfg.n_heads} heads"
        return f"FocusedStack({self.name} of {self.model.cfg.architecture}: {shape})"


def _renaming(fn: Callable[..., Any], shorts: dict[str, list[str]]) -> Callable[..., Any]:
    """A hook function that calls another for each name that the view has for the hook point."""

    def call(activation: Tensor, hook: Any) -> Any:
        found = None
        for short in shorts[hook.name]:
            new = fn(activation, hook=Renamed(short, hook))
            if new is not None:
                found, activation = new, new[0] if isinstance(new, tuple) else new  # a tuple in a backward hook
        return found

    return call
