//! Samples of a model in training: pictures of what it does with the validation pairs, and figures of them.

use std::path::Path;

use super::TaskError;
use super::data::Pair;
use crate::imaging::{Channels, FusionPair, Image, Samples, contact_sheet};
use crate::metrics::{Grey, Metrics, evaluate};
use crate::models::fusing::PairFuser;

/// Named figures of a validation.
pub(crate) type Figures = Vec<(String, f64)>;

/// Writes `samples/step-NNNNNNNN.png` in `folder`: pictures side by side under their labels, nothing if
/// there are none.
///
/// # Errors
/// Pictures of different sizes, a file that cannot be written.
pub(crate) fn save_strip(folder: &Path, step: u64, pictures: &[(String, Image)]) -> Result<(), TaskError> {
    if pictures.is_empty() {
        return Ok(());
    }
    let folder = folder.join("samples");
    std::fs::create_dir_all(&folder)?;
    let (labels, pictures): (Vec<&str>, Vec<Image>) = pictures.iter().map(|(l, i)| (l.as_str(), i.clone())).unzip();
    Ok(contact_sheet(&labels, &[(String::new(), pictures)])?.save(folder.join(format!("step-{step:08}.png")), 95)?)
}

/// Seed of the noise that validation pairs are fused with.
const VALIDATION_SEED: u64 = 0;

/// Fuses the validation pairs: their mean metrics, and a strip of the first pair of each modality.
///
/// # Errors
/// Pairs that cannot be fused or measured, a file that cannot be written.
pub(crate) fn sample_fused(
    folder: &Path,
    step: u64,
    pairs: &[Pair],
    fuser: &dyn PairFuser,
) -> Result<Figures, TaskError> {
    let (mut all, mut strip, mut shown) = (Vec::new(), Vec::new(), "");
    let plane =
        |pair: &Pair, levels: &[u8]| Image::new(pair.width, pair.height, Channels::Grey, Samples::U8(levels.to_vec()));
    for pair in pairs {
        let (mri, other) = (plane(pair, &pair.mri)?, plane(pair, &pair.other)?);
        let fused = fuser.fuse(&FusionPair::new(mri.clone(), other.clone())?, VALIDATION_SEED)?;
        let grey = [&mri, &other, &fused].map(Grey::from);
        all.push(evaluate(&grey[0], &grey[1], &grey[2])?);
        if shown != pair.modality {
            shown = &pair.modality;
            strip.extend([(pair.label(), mri), (String::new(), other), ("fused".to_owned(), fused)]);
        }
    }
    save_strip(folder, step, &strip)?;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let (mean, _) = Metrics::mean_and_std(&all);
    Ok(mean.iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
