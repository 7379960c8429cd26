//! Reading golden cases: `NAME.safetensors` with what the reference computed, `NAME.json` with how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CaseError;
use crate::tensor::{Shape, Tensor};

/// The elements of a case's tensor.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Values {
    /// Numbers.
    F32(Vec<f32>),
    /// Numbers whose names end in `_f64`.
    F64(Vec<f64>),
    /// Pixels, in tensors whose names end in `_u8`.
    U8(Vec<u8>),
    /// Counters.
    I64(Vec<i64>),
}

impl Values {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::I64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, which float64 holds exactly (counters up to 2^53).
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Self::F64(v) => v.clone(),
            Self::U8(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Self::I64(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }

    /// The name that the JSON has for their type.
    fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "float32",
            Self::F64(_) => "float64",
            Self::U8(_) => "uint8",
            Self::I64(_) => "int64",
        }
    }
}

/// A tensor of a case, row-major, with its own dimensions.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Array {
    /// The dimensions, outermost first.
    pub dims: Vec<usize>,
    /// The elements.
    pub values: Values,
}

/// How far the reference in float32 is from itself in float64.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct NoiseFloor {
    /// Largest difference of an element.
    pub max_abs_err: f64,
    /// Norm of the difference over the norm of the tensor.
    pub rel_l2: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// What the JSON says. Entries not listed are remarks for people.
#[derive(Deserialize)]
struct Sidecar {
    config: Map<String, Value>,
    #[serde(default)]
    train: bool,
    weights: Option<OneOrMany>,
    /// `in.* of FILE`.
    features: Option<String>,
    tensors: BTreeMap<String, (String, Vec<usize>)>,
    #[serde(default)]
    noise_floor: BTreeMap<String, NoiseFloor>,
    /// Weights whose true gradient is zero, so that what float32 computes is rounding.
    #[serde(default)]
    zero_gradient_params: Vec<String>,
}

impl Sidecar {
    /// The noise floors. The error of a single number that is nothing but rounding may be small by luck: gradients that
    /// are zero but for rounding have the largest error of all of those in common.
    fn noise_floors(&mut self) -> BTreeMap<String, NoiseFloor> {
        let mut floors = std::mem::take(&mut self.noise_floor);
        let is_rounding = |name: &str, floor: &NoiseFloor| {
            let weight = name.strip_prefix("grad.step0.");
            weight.is_some_and(|w| self.zero_gradient_params.iter().any(|zero| zero == w)) && floor.rel_l2 >= 1.0
        };
        let rounding = floors.iter().filter(|(name, floor)| is_rounding(name, floor));
        let largest = rounding.map(|(_, floor)| floor.max_abs_err).fold(0.0, f64::max);
        for (_, floor) in floors.iter_mut().filter(|(name, floor)| is_rounding(name, floor)) {
            floor.max_abs_err = largest;
        }
        floors
    }
}

/// A golden case in memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was computed.
    pub config: Map<String, Value>,
    /// Whether it was computed in training mode.
    pub train: bool,
    /// The files of weights.
    pub weights: Vec<PathBuf>,
    /// The case whose inputs are also this one's.
    pub features: Option<PathBuf>,
    /// All tensors by name.
    pub tensors: BTreeMap<String, Array>,
    /// The noise floors by tensor.
    pub noise_floor: BTreeMap<String, NoiseFloor>,
}

/// Whether the name that two files share is that of weights, which cases name, and not of a case.
fn is_weights(stem: &Path) -> bool {
    let name = stem.file_name().unwrap_or_default();
    name.to_string_lossy().ends_with("weights")
}

/// `path` without the ending of a case's files, if it has one.
fn stem(path: &Path) -> PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some("json" | "safetensors") => path.with_extension(""),
        _ => path.to_path_buf(),
    }
}

fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn unreadable(path: &Path, error: &std::io::Error) -> CaseError {
    CaseError::file(path, format!("it cannot be read: {error}"))
}

fn read(path: &Path) -> Result<Vec<u8>, CaseError> {
    std::fs::read(path).map_err(|e| unreadable(path, &e))
}

/// The cases that an argument stands for: those in and under a folder, sorted, or the one of a file. They are given by
/// the name that their two files have in common. Files of weights (`*weights.safetensors`, `*weights.json`) are no
/// cases: there are none in such a file.
///
/// # Errors
/// [`CaseError`] if a folder cannot be read or has no cases.
pub fn find_cases(path: &Path) -> Result<Vec<PathBuf>, CaseError> {
    if !path.is_dir() {
        let case = stem(path);
        return Ok(if is_weights(&case) { vec![] } else { vec![case] });
    }
    let mut found = Vec::new();
    walk(path, &mut found)?;
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(CaseError::NoCases);
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), CaseError> {
    let unreadable = |e: std::io::Error| unreadable(folder, &e);
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        // A link to a folder is not followed: it might lead in a circle.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            walk(&path, found)?;
        } else if stem(&path) != path && !is_weights(&stem(&path)) {
            found.push(stem(&path));
        }
    }
    Ok(())
}

impl Case {
    /// Reads a case whose files have the name `path` and the endings `.safetensors` and `.json`.
    ///
    /// # Errors
    /// [`CaseError`] if one is missing, is no such file, or they do not agree on the tensors.
    pub(crate) fn load(path: &Path) -> Result<Self, CaseError> {
        let json = with_ending(path, ".json");
        let mut sidecar: Sidecar = serde_json::from_slice(&read(&json)?).map_err(|e| CaseError::file(&json, e))?;
        if is_weights(path) {
            return Err(CaseError::file(&json, "it goes with a file of weights"));
        }
        let file = with_ending(path, ".safetensors");
        let bytes = read(&file)?;
        let stored = SafeTensors::deserialize(&bytes).map_err(|e| CaseError::file(&file, e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in stored.iter() {
            let values = values(view.dtype(), view.data())
                .ok_or_else(|| CaseError::tensor(name, format!("cases have no {:?} tensors", view.dtype())))?;
            if values.is_empty() {
                return Err(CaseError::tensor(name, "it has no elements"));
            }
            let dims = view.shape().to_vec();
            tensors.insert(name.to_owned(), Array { dims, values });
        }
        agree(&tensors, &sidecar.tensors)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let noise_floor = sidecar.noise_floors();
        let weights = match sidecar.weights {
            None => Vec::new(),
            Some(OneOrMany::One(path)) => vec![folder.join(path)],
            Some(OneOrMany::Many(paths)) => paths.iter().map(|p| folder.join(p)).collect(),
        };
        let features = sidecar.features.and_then(|f| f.rsplit(' ').next().map(|name| stem(&folder.join(name))));
        let Sidecar { config, train, .. } = sidecar;
        Ok(Self { config, train, weights, features, tensors, noise_floor })
    }

    /// The float32 tensor `name`.
    ///
    /// # Errors
    /// [`CaseError::Tensor`] if it is missing or of another type.
    pub(crate) fn f32(&self, name: &str) -> Result<(&[usize], &[f32]), CaseError> {
        match self.tensors.get(name) {
            Some(Array { dims, values: Values::F32(values) }) => Ok((dims, values)),
            Some(_) => Err(CaseError::tensor(name, "it must be float32")),
            None => Err(CaseError::tensor(name, "the case lacks it")),
        }
    }

    /// The uint8 tensor `name`.
    ///
    /// # Errors
    /// [`CaseError::Tensor`] if it is missing or of another type.
    pub(crate) fn u8(&self, name: &str) -> Result<(&[usize], &[u8]), CaseError> {
        match self.tensors.get(name) {
            Some(Array { dims, values: Values::U8(values) }) => Ok((dims, values)),
            Some(_) => Err(CaseError::tensor(name, "it must be uint8")),
            None => Err(CaseError::tensor(name, "the case lacks it")),
        }
    }

    /// The float32 tensor `name` and its shape in a graph.
    ///
    /// # Errors
    /// [`CaseError::Tensor`] if it is missing, of another type, or its dimensions have no NCHW reading.
    pub(crate) fn nchw(&self, name: &str) -> Result<(Shape, &[f32]), CaseError> {
        let (dims, values) = self.f32(name)?;
        let shape = Shape::from_dims(dims).ok_or_else(|| CaseError::tensor(name, format!("{dims:?} is not NCHW")))?;
        Ok((shape, values))
    }

    /// The float32 tensors whose names begin with `prefix`, by the rest of their names.
    pub(crate) fn params(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let of = |(name, array): (&String, &Array)| match &array.values {
            Values::F32(values) => {
                let key = name.strip_prefix(prefix)?.to_owned();
                Some((key, Tensor::new(array.dims.clone(), values.clone())))
            }
            _ => None,
        };
        self.tensors.iter().filter_map(of).collect()
    }
}

/// The elements of a stored tensor. safetensors has checked that there are as many bytes as its shape needs.
fn values(dtype: Dtype, bytes: &[u8]) -> Option<Values> {
    fn each<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks().0.iter().map(|&b| read(b)).collect()
    }
    Some(match dtype {
        Dtype::F32 => Values::F32(each(bytes, f32::from_le_bytes)),
        Dtype::F64 => Values::F64(each(bytes, f64::from_le_bytes)),
        Dtype::U8 => Values::U8(bytes.to_vec()),
        Dtype::I64 => Values::I64(each(bytes, i64::from_le_bytes)),
        _ => return None,
    })
}

/// Compares what the JSON says of the tensors with what is there.
fn agree(found: &BTreeMap<String, Array>, stated: &BTreeMap<String, (String, Vec<usize>)>) -> Result<(), CaseError> {
    for (name, (dtype, dims)) in stated {
        let Some(array) = found.get(name) else {
            let reason = "the JSON lists it, the file of tensors lacks it";
            return Err(CaseError::tensor(name, reason));
        };
        if array.dims != *dims || array.values.dtype() != dtype {
            let (here, dtype_here) = (&array.dims, array.values.dtype());
            let reason = format!("it is {dtype_here} {here:?}, but {dtype} {dims:?} according to the JSON");
            return Err(CaseError::tensor(name, reason));
        }
    }
    match found.keys().find(|name| !stated.contains_key(*name)) {
        Some(name) => Err(CaseError::tensor(name, "the JSON does not list it")),
        None => Ok(()),
    }
}
