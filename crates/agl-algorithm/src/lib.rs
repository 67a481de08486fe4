//! Algorithms over a store: the trait and Baseline.
