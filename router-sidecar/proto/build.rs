//! Compiles the contract without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 2] =
        ["proto/calico_vni/router/v1/router.proto", "proto/calico_vni/router/v1/operator.proto"];
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let files = protox::compile(PROTOS, ["proto"])?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        // What they hold, or may hold in its bytes, is never printed.
        .skip_debug(["calico_vni.router.v1.Password", "calico_vni.router.v1.Payload"])
        .compile_fds(files)?;
    Ok(())
}
