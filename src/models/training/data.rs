//! Registered pairs from folders, and the batches of random crops that training draws from them.
//!
//! A batch is a pure function of the dataset, the seed and the batch's number, so a run resumes with the number of its
//! step alone.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};
use rayon::prelude::*;

use super::TrainingError;
use crate::hash::{FNV_PRIME, fnv1a};
use crate::imaging::pairs::{Group, match_folders};
use crate::imaging::{Image, ImagingError, Samples, format_for};
use crate::tensor::Tensor;

/// Name of the folder that holds the first image of each pair.
const MRI: &str = "MRI";
/// A pixel brighter than this in either image is content, not background.
const CONTENT_LEVEL: u8 = 10;
/// Positions that are tried for a crop with enough content; the fullest of them is taken if none has.
const TRIES: usize = 20;

/// Two registered images of one size as 8-bit grey (Pillow's `convert("L")`), row-major.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// What the pair is a pair of: the name of its folder, such as `MRI-CT`.
    pub modality: String,
    /// The file name without extension.
    pub name: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The MRI, `width * height` pixels.
    pub mri: Vec<u8>,
    /// The other image, `width * height` pixels.
    pub other: Vec<u8>,
}

/// A square of a pair, flipped after it is cut out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Crop {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Side in pixels.
    pub side: usize,
    /// Whether left and right are swapped.
    pub flip_horizontal: bool,
    /// Whether top and bottom are swapped.
    pub flip_vertical: bool,
}

impl Pair {
    fn load(modality: &str, group: &Group<2>) -> Result<Self, ImagingError> {
        let [mri, other] = [0, 1].map(|i| Image::load(&group.paths[i]));
        let (mri, other) = (mri?, other?);
        let sizes = [&mri, &other].map(|image| (image.width(), image.height()));
        if sizes[0] != sizes[1] {
            return Err(ImagingError::SizeMismatch { mri: sizes[0], other: sizes[1] });
        }
        let ((width, height), modality, name) = (sizes[0], modality.to_owned(), group.name.clone());
        Ok(Self { modality, name, width, height, mri: grey(&mri), other: grey(&other) })
    }

    /// Modality and name, as messages say it.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.modality, self.name)
    }

    /// The crop in the middle.
    pub(crate) fn centre(&self, side: usize) -> Crop {
        let (left, top) = (self.width.saturating_sub(side) / 2, self.height.saturating_sub(side) / 2);
        Crop { left, top, side, flip_horizontal: false, flip_vertical: false }
    }

    /// The crop of the MRI and of the other image in the networks' range, `v / 255 * 2 - 1`, row-major.
    ///
    /// # Panics
    /// If the crop does not lie within the pair.
    pub(crate) fn cut(&self, crop: Crop) -> [Vec<f32>; 2] {
        [&self.mri, &self.other].map(|plane| {
            let mut cut = Vec::with_capacity(crop.side * crop.side);
            for y in 0..crop.side {
                let y = if crop.flip_vertical { crop.side - 1 - y } else { y };
                let start = (crop.top + y) * self.width + crop.left;
                let row = plane[start..start + crop.side].iter().map(|&v| f32::from(v) / 255.0 * 2.0 - 1.0);
                match crop.flip_horizontal {
                    true => cut.extend(row.rev()),
                    false => cut.extend(row),
                }
            }
            cut
        })
    }

    /// Pixels of the crop that are content in either image.
    fn content(&self, crop: Crop) -> usize {
        let row = |y: usize| {
            let start = (crop.top + y) * self.width + crop.left;
            let row = start..start + crop.side;
            let pixels = self.mri[row.clone()].iter().zip(&self.other[row]);
            pixels.filter(|(a, b)| **a.max(b) > CONTENT_LEVEL).count()
        };
        (0..crop.side).map(row).sum()
    }
}

fn grey(image: &Image) -> Vec<u8> {
    match image.to_grey().to_8_bit().samples() {
        Samples::U8(v) => v.clone(),
        Samples::U16(_) => unreachable!("the picture was just made 8 bit"),
    }
}

fn name_of(folder: &Path) -> String {
    // A path such as `.` has no name of its own.
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folders in a folder, sorted.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, TrainingError> {
    let unreadable = |reason| ImagingError::Unreadable { path: folder.into(), reason };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let paths: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut folders: Vec<PathBuf> = paths.map_err(unreadable)?.into_iter().filter(|p| p.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn has_images(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).any(|path| path.is_file() && format_for(&path).is_ok())
}

fn load_pairs(modality: &str, mri: &Path, other: &Path) -> Result<Vec<Pair>, TrainingError> {
    let matched = match_folders([mri, other])?;
    if !matched.unmatched.is_empty() {
        let names = matched.unmatched.iter().map(ToString::to_string).collect();
        return Err(TrainingError::Unpaired { folder: other.into(), names });
    }
    if matched.groups.is_empty() {
        return Err(TrainingError::NoPairs(other.into()));
    }
    let load = |group: &Group<2>| {
        let name = format!("{modality}/{}", group.name);
        Pair::load(modality, group).map_err(|reason| TrainingError::Pair { name, reason })
    };
    matched.groups.par_iter().map(load).collect()
}

/// Pairs to train on and pairs held out to validate with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dataset {
    /// The pairs to train on, sorted by modality and name.
    pub train: Vec<Pair>,
    /// The pairs held out, sorted by modality and name.
    pub validation: Vec<Pair>,
}

impl Dataset {
    /// The pairs under a folder: itself and each of its subfolders is a modality if it has a folder `MRI` of images and
    /// one other folder of images, matched by file name without extension.
    ///
    /// # Errors
    /// [`TrainingError`] if the folder is not there or has no pairs, a modality has not two folders, or images are without
    /// partner, unreadable or of different sizes.
    pub fn from_root(root: &Path) -> Result<Self, TrainingError> {
        if !root.is_dir() {
            return Err(TrainingError::NoFolder(root.into()));
        }
        let mut pairs = Vec::new();
        for folder in std::iter::once(root.to_path_buf()).chain(subfolders(root)?) {
            let mri = folder.join(MRI);
            if !mri.is_dir() {
                continue;
            }
            let others = subfolders(&folder)?.into_iter().filter(|f| *f != mri && has_images(f));
            match &others.collect::<Vec<_>>()[..] {
                [other] => pairs.append(&mut load_pairs(&name_of(&folder), &mri, other)?),
                others => {
                    let others = others.iter().map(|f| name_of(f)).collect();
                    return Err(TrainingError::NotTwoFolders { folder, others });
                }
            }
        }
        match pairs.is_empty() {
            true => Err(TrainingError::NoPairs(root.into())),
            false => Ok(Self::of(pairs)),
        }
    }

    /// The pairs of two folders; their modality is the name of the second.
    ///
    /// # Errors
    /// Those of [`Dataset::from_root`].
    pub fn from_folders(mri: &Path, other: &Path) -> Result<Self, TrainingError> {
        if let Some(missing) = [mri, other].into_iter().find(|folder| !folder.is_dir()) {
            return Err(TrainingError::NoFolder(missing.into()));
        }
        Ok(Self::of(load_pairs(&name_of(other), mri, other)?))
    }

    /// A dataset of these pairs, all of them to train on.
    pub fn of(mut train: Vec<Pair>) -> Self {
        train.sort_by(|a, b| (&a.modality, &a.name).cmp(&(&b.modality, &b.name)));
        Self { train, validation: Vec::new() }
    }

    /// Holds out `count` pairs of each modality, those whose names have the smallest hashes, so which they are depends on
    /// the names alone. A pair that shares an image with one held out is left out of both.
    ///
    /// # Errors
    /// [`TrainingError::NoneLeft`] if that leaves a modality without pairs to train on.
    pub fn hold_out(self, count: usize) -> Result<Self, TrainingError> {
        let mut modalities: BTreeMap<String, Vec<Pair>> = BTreeMap::new();
        for pair in self.train {
            modalities.entry(pair.modality.clone()).or_default().push(pair);
        }
        let (mut train, mut validation, mut sizes) = (Vec::new(), self.validation, Vec::new());
        for (modality, mut pairs) in modalities {
            sizes.push((modality, pairs.len()));
            pairs.sort_by_key(|pair| fnv1a(pair.label().as_bytes()));
            train.extend(pairs.split_off(count.min(pairs.len())));
            validation.extend(pairs);
        }
        let held: HashSet<&Vec<u8>> = validation.iter().flat_map(|p: &Pair| [&p.mri, &p.other]).collect();
        train.retain(|p: &Pair| !held.contains(&p.mri) && !held.contains(&p.other));
        for (modality, pairs) in sizes {
            if !train.iter().any(|p| p.modality == modality) {
                return Err(TrainingError::NoneLeft { modality, pairs, held_out: count });
            }
        }
        validation.sort_by(|a, b| (&a.modality, &a.name).cmp(&(&b.modality, &b.name)));
        Ok(Self { validation, ..Self::of(train) })
    }

    /// A number that differs when any pixel, name or the split does: a resumed run compares it.
    pub(crate) fn fingerprint(&self) -> u64 {
        let bytes = |pair: &Pair| [pair.label().as_bytes(), &pair.mri, &pair.other].map(fnv1a);
        let pairs = self.train.iter().chain(&self.validation);
        pairs.flat_map(bytes).fold(self.train.len() as u64, |all, one| (all ^ one).wrapping_mul(FNV_PRIME))
    }
}

/// How batches are drawn.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sampling {
    /// Side of the crops in pixels.
    pub crop: usize,
    /// Pairs a batch.
    pub batch: usize,
    /// Whether each sample draws its modality first, all alike; else all pairs are alike.
    pub balanced: bool,
    /// Least share of a crop's pixels, 0 to 1, that are over 10 of 255 in either image. A crop with less is drawn again,
    /// twenty times at most; the fullest is taken then.
    pub min_content: f64,
    /// Probability, 0 to 1, that a crop is mirrored left to right.
    pub flip_horizontal: f64,
    /// Probability, 0 to 1, that a crop is mirrored top to bottom.
    pub flip_vertical: f64,
}

/// Crops of several pairs, each `[n, 1, crop, crop]` in [-1, 1].
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Batch {
    /// The MRIs.
    pub mri: Tensor,
    /// The other images.
    pub other: Tensor,
}

impl Batch {
    /// Both images of every pair as `[2 n, 1, crop, crop]`, the other images before the MRIs, as the reference's stage I
    /// takes them (`train_ddpm.py`: `cat([vis, ir])`).
    pub(crate) fn images(&self) -> Tensor {
        let mut dims = self.mri.dims().to_vec();
        dims[0] *= 2;
        Tensor::new(dims, [self.other.data(), self.mri.data()].concat())
    }
}

/// Fails if a pair is smaller than the crop.
///
/// # Errors
/// [`TrainingError::SmallerThanCrop`] with their names.
pub(crate) fn check_sizes(pairs: &[Pair], crop: usize) -> Result<(), TrainingError> {
    let small = pairs.iter().filter(|p| p.width.min(p.height) < crop);
    let names: Vec<String> = small.map(|p| format!("{} ({}x{})", p.label(), p.width, p.height)).collect();
    if names.is_empty() { Ok(()) } else { Err(TrainingError::SmallerThanCrop { names, crop }) }
}

/// The endless row of batches of random crops.
#[derive(Clone, Debug)]
pub(crate) struct Batches<'a> {
    /// The pairs of each modality, or all of them in one group.
    groups: Vec<Vec<&'a Pair>>,
    sampling: Sampling,
    seed: u64,
}

impl<'a> Batches<'a> {
    /// Batches of `pairs`.
    ///
    /// # Errors
    /// [`TrainingError::SmallerThanCrop`] if any pair is, [`TrainingError::Empty`] if there is none.
    pub(crate) fn new(pairs: &'a [Pair], sampling: Sampling, seed: u64) -> Result<Self, TrainingError> {
        check_sizes(pairs, sampling.crop)?;
        if pairs.is_empty() {
            return Err(TrainingError::Empty);
        }
        let mut groups: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
        for pair in pairs {
            let group = if sampling.balanced { pair.modality.as_str() } else { "" };
            groups.entry(group).or_default().push(pair);
        }
        Ok(Self { groups: groups.into_values().collect(), sampling, seed })
    }

    /// Batch `number`, the same whenever it is asked for.
    pub(crate) fn batch(&self, number: u64) -> Batch {
        let Sampling { batch, crop, .. } = self.sampling;
        let (mut mri, mut other) = (Vec::new(), Vec::new());
        for i in 0..batch as u64 {
            let (pair, place) = self.draw(number * batch as u64 + i);
            let [m, o] = pair.cut(place);
            mri.extend(m);
            other.extend(o);
        }
        let [mri, other] = [mri, other].map(|data| Tensor::new([batch, 1, crop, crop], data));
        Batch { mri, other }
    }

    /// Sample `number`: which pair, and which crop of it. Each number has a stream of the generator for itself.
    fn draw(&self, number: u64) -> (&'a Pair, Crop) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // The lower half of the streams is the noise's: from one stream, the noise step would go with the modality.
        rng.set_stream(number | 1 << 63);
        let group = &self.groups[below(self.groups.len(), &mut rng)];
        let pair = group[below(group.len(), &mut rng)];
        let side = self.sampling.crop;
        let wanted = (self.sampling.min_content * (side * side) as f64).ceil() as usize;
        let (mut best, mut fullest) = (pair.centre(side), None);
        for _ in 0..TRIES {
            let left = below(pair.width - side + 1, &mut rng);
            let top = below(pair.height - side + 1, &mut rng);
            let crop = Crop { left, top, ..best };
            let content = pair.content(crop);
            if fullest < Some(content) {
                (best, fullest) = (crop, Some(content));
            }
            if content >= wanted {
                break;
            }
        }
        best.flip_horizontal = unit(&mut rng) < self.sampling.flip_horizontal;
        best.flip_vertical = unit(&mut rng) < self.sampling.flip_vertical;
        (pair, best)
    }
}

/// Uniform from 0 to `end - 1`.
fn below(end: usize, rng: &mut ChaCha8Rng) -> usize {
    Uniform::new(0, end).expect("the range is not empty").sample(rng)
}

/// Uniform in [0, 1).
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    Uniform::new(0.0, 1.0).expect("0 is less than 1").sample(rng)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::imaging::Channels;

    /// A pair whose pixel at (x, y) tells its place: column in the MRI, row in the other image.
    fn ramp(modality: &str, name: usize, width: usize, height: usize) -> Pair {
        let plane = |value: &dyn Fn(usize, usize) -> usize| {
            (0..width * height).map(|i| value(i % width, i / width) as u8).collect::<Vec<u8>>()
        };
        let (modality, name, tag) = (modality.to_owned(), format!("{name:04}"), name);
        let (mri, other) = (plane(&|x, _| x + 100 + tag % 7), plane(&|_, y| y + 150 + tag % 7));
        Pair { modality, name, width, height, mri, other }
    }

    fn sampling(crop: usize, batch: usize) -> Sampling {
        Sampling { crop, batch, balanced: true, min_content: 0.0, flip_horizontal: 0.5, flip_vertical: 0.5 }
    }

    fn save(path: PathBuf, width: usize, height: usize, channels: Channels, value: impl Fn(usize) -> u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let samples = (0..width * height * channels.count()).map(value).collect();
        Image::new(width, height, channels, Samples::U8(samples)).unwrap().save(path, 95).unwrap();
    }

    /// `count` pairs of 6 x 4 pixels in ROOT/MRI-PET, the other images in colour.
    fn folder(count: usize) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for i in 0..count {
            let file = |f: &str| root.path().join(format!("MRI-PET/{f}/{i:04}.png"));
            save(file("MRI"), 6, 4, Channels::Grey, |p| (p * 10 + i) as u8);
            save(file("PET"), 6, 4, Channels::Rgb, |p| [200, 10, 30][p % 3] + i as u8);
        }
        root
    }

    #[test]
    fn a_root_a_modality_and_two_folders_are_read_alike() {
        let root = folder(3);
        std::fs::create_dir_all(root.path().join("MRI-PET/published/net")).unwrap();
        std::fs::create_dir_all(root.path().join("notes")).unwrap();
        let data = Dataset::from_root(root.path()).unwrap();
        assert_eq!(
            data.train.iter().map(Pair::label).collect::<Vec<_>>(),
            ["MRI-PET/0000", "MRI-PET/0001", "MRI-PET/0002"]
        );
        let pair = &data.train[1];
        assert_eq!((pair.width, pair.height, pair.mri[5], pair.mri.len()), (6, 4, 51, 24));
        // Pillow: (19595 * 201 + 38470 * 11 + 7471 * 31 + 32768) >> 16
        assert_eq!(pair.other, [70; 24]);
        let modality = root.path().join("MRI-PET");
        assert_eq!(Dataset::from_root(&modality).unwrap(), data);
        let two = Dataset::from_folders(&modality.join("MRI"), &modality.join("PET")).unwrap();
        assert_eq!((two.train[1].label().as_str(), &two.train[1].mri), ("PET/0001", &pair.mri));
    }

    #[test]
    fn what_is_no_dataset_is_told() {
        let told = |root: &Path| Dataset::from_root(root).unwrap_err().to_string();
        let root = folder(2);
        assert!(told(&root.path().join("no")).starts_with("there is no folder"));
        assert!(told(tempfile::tempdir().unwrap().path()).contains("has no pairs"));
        let path = |f: &str| root.path().join("MRI-PET").join(f);
        save(path("PET/0001.png"), 6, 5, Channels::Grey, |_| 0);
        let text = told(root.path());
        assert!(text.contains("MRI-PET/0001") && text.contains("6x5"), "{text}");
        for i in 2..9 {
            save(path(&format!("PET/{i:04}.png")), 6, 4, Channels::Grey, |_| 0);
        }
        let text = told(root.path());
        assert!(text.starts_with("images of") && text.contains("0002: no image of this name in"), "{text}");
        assert!(text.contains("0006") && !text.contains("0007") && text.ends_with(" and 2 more"), "{text}");
        save(path("CT/0000.png"), 6, 4, Channels::Grey, |_| 0);
        assert!(told(root.path()).contains("not 2: CT, PET"), "{}", told(root.path()));
    }

    #[test]
    fn validation_is_held_out_by_name_and_shares_no_image() {
        let pairs = |names: std::ops::Range<usize>| names.map(|i| ramp("CT", i, 6, 4)).collect::<Vec<_>>();
        let distinct = |mut pairs: Vec<Pair>| {
            pairs.iter_mut().enumerate().for_each(|(i, p)| (p.mri[0], p.other[0]) = (i as u8, i as u8));
            Dataset::of(pairs)
        };
        let split = distinct(pairs(0..20)).hold_out(4).unwrap();
        let names = |pairs: &[Pair]| pairs.iter().map(|p| p.name.clone()).collect::<BTreeSet<_>>();
        assert_eq!((split.train.len(), split.validation.len()), (16, 4));
        assert!(names(&split.train).is_disjoint(&names(&split.validation)));
        // More pairs do not move a held-out pair into training unless new ones take its place.
        let more = distinct(pairs(0..21)).hold_out(5).unwrap();
        assert!(names(&split.validation).is_subset(&names(&more.validation)));
        let mut twins = distinct(pairs(0..20));
        let held = twins.train.iter().position(|p| p.name == split.validation[0].name).unwrap();
        let free = twins.train.iter().position(|p| p.name == split.train[0].name).unwrap();
        twins.train[free].mri = twins.train[held].mri.clone();
        assert_eq!(twins.hold_out(4).unwrap().train, split.train[1..]);
        let error = distinct(pairs(0..4)).hold_out(4).unwrap_err();
        assert!(error.to_string().contains("CT has 4 pairs"), "{error}");
    }

    #[test]
    fn a_fingerprint_sees_every_pixel_and_the_split() {
        let data = Dataset::of((0..6).map(|i| ramp("CT", i, 6, 4)).collect());
        let mut changed = data.clone();
        changed.train[5].other[23] ^= 1;
        let split = data.clone().hold_out(1).unwrap();
        assert_eq!(data.fingerprint(), data.clone().fingerprint());
        assert_ne!(data.fingerprint(), changed.fingerprint());
        assert_ne!(data.fingerprint(), split.fingerprint());
    }

    #[test]
    fn a_cut_is_the_square_at_its_place_mirrored_as_asked() {
        let pair = ramp("CT", 0, 6, 4);
        let crop = Crop { left: 3, top: 1, side: 2, flip_horizontal: false, flip_vertical: false };
        let raw =
            |crop| pair.cut(crop).map(|v| v.iter().map(|x| ((x + 1.0) / 2.0 * 255.0).round()).collect::<Vec<_>>());
        assert_eq!(raw(crop), [vec![103.0, 104.0, 103.0, 104.0], vec![151.0, 151.0, 152.0, 152.0]]);
        let mirrored = raw(Crop { flip_horizontal: true, ..crop });
        assert_eq!(mirrored, [vec![104.0, 103.0, 104.0, 103.0], vec![151.0, 151.0, 152.0, 152.0]]);
        let upside_down = raw(Crop { flip_vertical: true, ..crop });
        assert_eq!(upside_down, [vec![103.0, 104.0, 103.0, 104.0], vec![152.0, 152.0, 151.0, 151.0]]);
        assert_eq!(pair.centre(2), Crop { left: 2, ..crop });
    }

    #[test]
    fn batches_repeat_by_number_and_cover_positions_flips_and_modalities() {
        let mut pairs: Vec<Pair> = (0..30).map(|i| ramp("PET", i, 9, 8)).collect();
        pairs.push(ramp("CT", 6, 9, 8));
        let batches = Batches::new(&pairs, sampling(4, 3), 5).unwrap();
        let batch = batches.batch(7);
        assert_eq!(batch.mri.dims(), [3, 1, 4, 4]);
        assert_eq!(batch, batches.clone().batch(7));
        assert_ne!(batch, batches.batch(8));
        assert_ne!(batch, Batches::new(&pairs, sampling(4, 3), 6).unwrap().batch(7));
        assert_eq!(batch.images().dims(), [6, 1, 4, 4]);
        assert_eq!(batch.images().data()[48..], *batch.mri.data());
        let draws: Vec<_> = (0..4000).map(|i| batches.draw(i)).collect();
        let ct = draws.iter().filter(|(pair, _)| pair.modality == "CT").count();
        assert!((1900..2100).contains(&ct), "{ct} of 4000 draws are the only CT");
        let kinds = draws.iter().map(|(_, c)| (c.left, c.top, c.flip_horizontal, c.flip_vertical));
        assert_eq!(kinds.collect::<BTreeSet<_>>().len(), 6 * 5 * 4);
        let names = draws.iter().map(|(pair, _)| pair.label()).collect::<BTreeSet<_>>();
        assert_eq!(names.len(), 31);
        let plain = Sampling { balanced: false, ..sampling(4, 3) };
        let plain = Batches::new(&pairs, plain, 5).unwrap();
        let ct = (0..4000).filter(|i| plain.draw(*i).0.modality == "CT").count();
        assert!((90..170).contains(&ct), "{ct} of 4000 draws are the one CT of 31 pairs");
    }

    #[test]
    fn empty_crops_are_drawn_again() {
        let mut pair = ramp("CT", 0, 64, 64);
        // A bright square of 16 pixels a side in the other image, on black.
        pair.mri.fill(CONTENT_LEVEL);
        pair.other = (0..64 * 64).map(|i| if i % 64 < 16 && i / 64 < 16 { 200 } else { 0 }).collect();
        let pairs = [pair];
        let empty = |min_content| {
            let batches = Batches::new(&pairs, Sampling { min_content, ..sampling(16, 1) }, 1).unwrap();
            (0..300).filter(|i| pairs[0].content(batches.draw(*i).1) == 0).count()
        };
        // Of 49 x 49 positions 16 x 16 touch the square, a share of 0.107: twenty tries miss it with probability 0.1.
        assert!(empty(0.0) > 200, "{}", empty(0.0));
        assert!((10..70).contains(&empty(0.02)), "{}", empty(0.02));
    }

    #[test]
    fn pairs_smaller_than_the_crop_are_told() {
        let pairs = [ramp("CT", 3, 9, 8), ramp("CT", 4, 9, 9)];
        let error = Batches::new(&pairs, sampling(9, 1), 0).unwrap_err().to_string();
        assert!(
            error.starts_with("pairs are smaller than the crop of 9 pixels") && error.ends_with(": CT/0003 (9x8)"),
            "{error}"
        );
    }
}
