# Parameters, gradients and optimizer states sharded over the GPUs, a transformer block at a time.
_base_ = './maskrcnn_mpvit_b.py'
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmvit.ResumableFSDPStrategy',
    model_wrapper=dict(auto_wrap_policy=dict(type='mmvit.sharding.wrap_blocks')),
    state_dict_cfg='full',
)
