//! How the guest is linked: alone, at the address that it runs at.
fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=src/start.s");
    let script = format!("-Wl,-T,{directory}/link.ld,--build-id=none,-z,noexecstack");
    for argument in ["-nostdlib", "-nostartfiles", "-static", "-no-pie", &script] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
