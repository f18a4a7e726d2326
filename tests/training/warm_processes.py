"""What the processes of a job import from others: read once, before they are forked."""

import pydantic  # noqa: F401
import rich.progress  # noqa: F401
import safetensors.torch  # noqa: F401
import tensorboardX  # noqa: F401
import tokenizers  # noqa: F401
import torch.distributed.checkpoint
import torch.distributed.fsdp  # noqa: F401
import yaml  # noqa: F401
