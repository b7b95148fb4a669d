"""Models with real outliers, to try the quantiser on: what a small model trained here cannot show.

Weights come from packages of the registries and never from this repository; nothing of those packages is run. Each
testbed is a command, `quota testbed NAME`:

    smollm2   a language model of 30 layers with grouped heads: perplexity of English prose
    dinov2    a vision tower of 12 blocks: output error of its layers on photographs
    vlm       both in one LLaVA, trained to answer questions about photographs (in the making: no adapter yet)
"""
