"""What pre-training is worth, measured. Each study is a module with three functions:

plan(config) -> Plan                            what is compared, and on which images
conclude(config, plan, table) -> [sentence or Comparison], which intervals.said makes sentences of
picture(config, plan, table) -> Figure
"""

from ssl_jax.studies import augmentations, convergence, domain_adaptation, init, label_efficiency, methods

STUDIES = {
    "label_efficiency": label_efficiency,
    "convergence": convergence,
    "domain_adaptation": domain_adaptation,
    "init": init,
    "augmentations": augmentations,
    "methods": methods,
}
