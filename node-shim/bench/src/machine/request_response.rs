//! A byte there and a byte back over TCP, one at a time: what a round trip costs.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Answers every byte, one client after the other, for ever.
pub(crate) fn answer(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("failed to listen on {address}"))?;
    loop {
        let (mut stream, _) = listener.accept().context("failed to accept")?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        // Until the client goes, in whatever way.
        while stream
            .read_exact(&mut byte)
            .and_then(|()| stream.write_all(&byte))
            .is_ok()
        {}
    }
}

/// Exchanges bytes for some seconds, and returns how many there were in each.
pub(crate) fn ask(address: &str, seconds: u32) -> Result<f64> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("failed to connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let started = Instant::now();
    let limit = Duration::from_secs(seconds.into());
    let mut count = 0_u32;
    let mut byte = [b'x'];
    while started.elapsed() < limit {
        stream.write_all(&byte).context("failed to send")?;
        match stream.read_exact(&mut byte) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result.context("no answer")?,
        }
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_comes_back() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let server = address.clone();
        std::thread::spawn(move || answer(&server));
        let rate = (0..50).find_map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            ask(&address, 1).ok()
        });
        assert!(rate.unwrap() > 10.0);
    }
}
