//! Generates the gRPC code from `proto/`, what reads and writes stored values from `lua/formats.toml`, and puts the Lua scripts together
//! from `lua/` and `lua/lib/`.

#[path = "build/formats.rs"]
mod formats;
#[path = "build/layout.rs"]
mod layout;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=lua");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate_grpc(&out)?;
    generate_envoy(&out)?;
    let formats = formats::parse(&fs::read_to_string("lua/formats.toml")?)?;
    fs::write(out.join("formats.rs"), formats::rust(&formats)?)?;
    fs::write(out.join("formats_tests.rs"), formats::rust_tests(&formats.formats)?)?;
    // For tests, which run all of it.
    fs::write(out.join("formats_library.lua"), formats::lua(&formats, None))?;
    fs::write(out.join("redis-layout.md"), layout::page(&fs::read_to_string("build/redis-layout.md")?, &formats)?)?;
    assemble_scripts(Path::new("lua"), &formats, &out)
}

fn generate_grpc(out: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["tollgate/v1/tollgate.proto"], ["proto"])?;
    // The reflection service shows these, comments included.
    fs::write(out.join("tollgate.v1.bin"), descriptors.encode_to_vec())?;
    // The status of one request of a batch is the type that also carries the details of a fault.
    let generate = tonic_prost_build::configure().build_client(true).btree_map(".");
    generate.extern_path(".google.rpc.Status", "::tonic_types::Status").compile_fds(descriptors)?;
    Ok(())
}

/// Envoy's packages refer to each other: one file includes all of them, as modules of their names.
fn generate_envoy(out: &Path) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["envoy/service/ratelimit/v3/rls.proto"], ["proto"])?;
    fs::write(out.join("envoy.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_client(true).include_file("envoy.rs").compile_fds(descriptors)?;
    Ok(())
}

/// Writes `OUT_DIR/<name>.lua` for every `lua/<name>.lua`: its shebang, then the libraries that its `-- uses:` line
/// names, in that order, then the script itself. The library `formats` is generated: of it comes what the others name.
fn assemble_scripts(from: &Path, formats: &formats::Declarations, out: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "lua") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let (shebang, body) = text.split_once('\n').ok_or("an empty script")?;
        if !shebang.starts_with("#!lua") {
            return Err(format!("{} does not start with #!lua", path.display()).into());
        }
        let uses = body.lines().find_map(|line| line.strip_prefix("-- uses: ")).unwrap_or_default();
        let mut parts = Vec::new();
        for library in uses.split_whitespace() {
            if library == "formats" {
                parts.push(None);
                continue;
            }
            let library = from.join("lib").join(format!("{library}.lua"));
            let text = fs::read_to_string(&library).map_err(|error| format!("{}: {error}", library.display()))?;
            parts.push(Some(without_comments(&text)));
        }
        parts.push(Some(without_comments(body)));
        let written: String = parts.iter().flatten().map(String::as_str).collect();
        let library = formats::lua(formats, Some(&written));
        let parts: Vec<_> = parts.iter().map(|part| part.as_deref().unwrap_or(&library)).collect();
        // `src/ledger/script/scopes.rs` takes the lines between them away.
        let script = format!("{shebang}\n{}", parts.join("--~\n"));
        fs::write(out.join(path.file_name().ok_or("a script without a name")?), script)?;
    }
    Ok(())
}

/// Drops the lines that are only comments, which Redis would keep in memory.
fn without_comments(text: &str) -> String {
    let code = |line: &&str| !line.trim_start().starts_with("--") && !line.trim().is_empty();
    text.lines().filter(code).flat_map(|line| [line, "\n"]).collect()
}
