//! `node-shim control guest`: a client of the agent in a guest, through the VM's vsock socket. The protocol is `node_shim_protocol::guest`.
//!
//! The running VMM has no part in it but to pass bytes on: who may open the socket may talk to the agent. Everything that comes back is a
//! guest's, so [`Answers`](node_shim_protocol::guest::Answers) bounds all of it, and nobody waits for it longer than was said.

pub(crate) mod command;
mod connection;

#[cfg(test)]
mod tests;
