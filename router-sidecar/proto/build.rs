//! Compiles the contract without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/calico_vni/router/v1/router.proto";
    println!("cargo:rerun-if-changed={PROTO}");
    let files = protox::compile([PROTO], ["proto"])?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        // What they hold, or may hold in its bytes, is never printed.
        .skip_debug(["calico_vni.router.v1.Password", "calico_vni.router.v1.Payload"])
        .compile_fds(files)?;
    Ok(())
}
