"""A plugin that runs checkpoints of ours in vLLM, cuts included (docs/vllm.md).

vLLM finds `plugin.register` by the entry point `vllm.general_plugins`, in each of its processes. What it is told:

    config      checkpoints of ours run by classes of ours; what they cannot do is refused: redirect, refusals
    model       tower, projector, decoder and head are those that transformers loads: model, and a file for each family
    decoder     the loop over decoder layers, which cuts tokens; attention to packed blocks: decoder, attention, pages
    worker      tells the model which request each row of a pass belongs to: worker, batch
    scheduler   gives every stage of the decoder blocks for the tokens that it keeps: scheduler, manager, spec, stages

The model's code is that of `from_pretrained`, so operators, embedding, head and scores are the same ones, and so are
the checks of a checkpoint. vLLM has the requests, the batches, the blocks, and sampling.
"""
