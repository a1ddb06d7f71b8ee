"""Settings of the input front end as a published checkpoint has them, for tests that need no whole bundle."""

from nearfield.runtime.manifest import Audio, Tokens, Vision
from transformers import Qwen2_5OmniProcessor

AUDIO = Audio(sample_rate_hz=16_000, n_fft=400, hop_samples=160, mel_bins=128, block_frames=200, max_frames=3_000)

VISION = Vision(
    patch_pixels=14,
    temporal_patch_frames=2,
    merge_patches=2,
    window_pixels=112,
    hidden_size=160,
    image_min_pixels=3_136,
    image_max_pixels=12_845_056,
    video_min_pixels=128 * 28 * 28,
    video_max_pixels=768 * 28 * 28,
    mean=[0.48145466, 0.4578275, 0.40821073],
    std=[0.26862954, 0.26130258, 0.27577711],
)


def token_settings(processor: Qwen2_5OmniProcessor) -> Tokens:
    """The ids prompts are assembled from."""

    def token_id(name: str) -> int:
        index: int = processor.tokenizer.convert_tokens_to_ids(name)
        return index

    return Tokens(
        audio=token_id("<|AUDIO|>"),
        audio_bos=token_id("<|audio_bos|>"),
        audio_eos=token_id("<|audio_eos|>"),
        image=token_id("<|IMAGE|>"),
        video=token_id("<|VIDEO|>"),
        vision_bos=token_id("<|vision_bos|>"),
        vision_eos=token_id("<|vision_eos|>"),
        position_ids_per_second=25,
        seconds_per_chunk=2,
    )
