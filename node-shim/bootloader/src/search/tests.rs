//! Disks as distributions lay them out, made with the tools that they are made with.

mod debian;
mod fedora;
mod hostile;
mod image;
mod red_hat;
mod systemd;
mod ubuntu;
