//! The agl command.
