//! Compiles the kubelet's gRPC interfaces, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["device_plugin.proto", "pod_resources.proto"], ["proto"])?;
    // The server side of the kubelet's own services is for tests, which play the kubelet.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
