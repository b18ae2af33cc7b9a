# What lets every training survive: whole checkpoints, and the newest of them on --resume; a stop at a loss that is not
# finite; the random states of a resumed training; an end with a checkpoint on SIGTERM and Ctrl-C; no start with files
# or settings that cannot be right; on a CPU, threads that heed other processes.
training_hooks = dict(
    checkpoint=dict(type='mmvit.AtomicCheckpointHook'),
    finite_loss=dict(type='mmvit.FiniteLossHook'),
    random_states=dict(type='mmvit.RandomStatesHook'),
    interrupt=dict(type='mmvit.InterruptHook'),
    check_setup=dict(type='mmvit.CheckSetupHook'),
    threads=dict(type='mmvit.FitThreadsHook'),
)
