# Filled by the packaging work: the megalodon library (all layers in one), its CMake package and the install rules.
