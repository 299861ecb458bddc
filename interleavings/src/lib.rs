//! Nothing: this package consists of the test `engine`, which is the engine's own sources.
