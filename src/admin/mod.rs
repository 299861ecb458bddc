//! What an operator asks of a repo, for the program `walrusds` and for embedders: beside running
//! nodes, and without changing anything unless the question says so.
//!
//! | module | answers |
//! |---|---|
//! | [`check`](mod@check) | does Walrus hold what the index says? |
//! | [`doctor`](mod@doctor) | is everything as a node needs it? |
//! | [`repair`](mod@repair) | which lost blocks have copies, and what becomes of the others? |

pub mod check;
pub mod doctor;
mod http;
pub mod repair;
