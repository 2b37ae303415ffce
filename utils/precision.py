"""--amp: mixed precision by name."""

import torch

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str | None) -> torch.autocast:
    """The context in which products are computed in `amp`, a name of AMP_DTYPES; None: in float32."""
    return torch.autocast(device.type, AMP_DTYPES.get(amp), enabled=amp is not None)
