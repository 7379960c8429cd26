//! The embedded WGSL: sources, includes, variants, and their validation without a GPU.

use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::ops::Kernel;

static KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
static SHARED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/shared.rs"));

/// Why a kernel is not valid WGSL.
#[derive(Debug, thiserror::Error)]
#[error("kernel {kernel}: {message}")]
pub struct ShaderError {
    kernel: String,
    message: String,
}

/// How a kernel uses one binding of its group 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The parameters.
    Uniform,
    /// A tensor that is read.
    Read,
    /// A tensor that is written.
    Write,
}

/// Names of all kernel files.
pub fn names() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|(name, _)| *name)
}

/// The WGSL text of a kernel: `//#use NAME` lines replaced with `shaders/shared/NAME.wgsl`, `//@body` with the
/// kernel's own text.
///
/// # Errors
/// If the file or something it uses does not exist.
pub fn source(kernel: &Kernel) -> Result<String, ShaderError> {
    let fail = |message: String| ShaderError { kernel: kernel.file.to_owned(), message };
    let text = find(KERNELS, kernel.file).ok_or_else(|| fail("there is no such file".into()))?;
    let mut source = String::with_capacity(text.len());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("//#use ") {
            let shared = find(SHARED, name.trim());
            source.push_str(shared.ok_or_else(|| fail(format!("it uses {name}, which is missing")))?);
        } else if line.trim() == "//@body" {
            let body = kernel.body.as_deref();
            source.push_str(body.ok_or_else(|| fail("it needs a body".into()))?);
        } else {
            source.push_str(line);
        }
        source.push('\n');
    }
    Ok(source)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Parses and validates a kernel in the variant that its constants make; returns how it uses its bindings, by number.
///
/// # Errors
/// [`ShaderError`] with naga's words.
pub fn validate(kernel: &Kernel) -> Result<Vec<Access>, ShaderError> {
    let fail = |message: String| ShaderError { kernel: kernel.file.to_owned(), message };
    let text = source(kernel)?;
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| fail(e.emit_to_string(&text)))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|e| fail(e.emit_to_string(&text)))?;
    let constants = kernel.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let entry = Some((naga::ShaderStage::Compute, kernel.entry));
    process_overrides(&module, &info, entry, &constants).map_err(|e| fail(e.to_string()))?;
    if !module.entry_points.iter().any(|e| e.name == kernel.entry) {
        return Err(fail(format!("it has no entry point {}", kernel.entry)));
    }
    Ok(bindings(&module))
}

fn bindings(module: &naga::Module) -> Vec<Access> {
    let mut found: Vec<(u32, Access)> = module
        .global_variables
        .iter()
        .filter_map(|(_, var)| {
            let access = match var.space {
                naga::AddressSpace::Uniform => Access::Uniform,
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Access::Write,
                naga::AddressSpace::Storage { .. } => Access::Read,
                _ => return None,
            };
            Some((var.binding?.binding, access))
        })
        .collect();
    found.sort_by_key(|(binding, _)| *binding);
    found.into_iter().map(|(_, access)| access).collect()
}
