package hub

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

var (
	// quantization is how the names of GGUF files end, before the number of a part: "-Q4_K_M", ".IQ2_XS", "-BF16".
	quantization = regexp.MustCompile(`(?i)(?:^|[-_.])((?:UD-)?(?:I?Q[1-9](?:_[0-9A-Z]+)*|TQ[12]_0|BF16|F(?:P)?16|F(?:P)?32|MXFP4(?:_MOE)?))$`)
	// part is the number of a file of a model that is split.
	part = regexp.MustCompile(`-[0-9]{5}-of-[0-9]{5}$`)
	// preferred are the quantizations that a name without one means, the best compromise first.
	preferred = []string{"Q4_K_M", "Q4_K_S", "Q4_0", "MXFP4", "Q5_K_M", "Q8_0", "F16", "BF16"}
)

// isProjector reports whether a file turns images into what a model sees.
func isProjector(file string) bool {
	return strings.Contains(strings.ToLower(path.Base(file)), "mmproj")
}

// quantizationOf returns what the name of a GGUF file says of its quantization, in upper case; empty if it says nothing.
func quantizationOf(file string) string {
	stem := part.ReplaceAllString(strings.TrimSuffix(path.Base(file), path.Ext(file)), "")
	if m := quantization.FindStringSubmatch(stem); m != nil {
		return strings.ToUpper(m[1])
	}
	// Large models have a directory for each.
	if m := quantization.FindStringSubmatch(path.Base(path.Dir(file))); m != nil {
		return strings.ToUpper(m[1])
	}
	return ""
}

// ggufs are the GGUF models of a repository by their quantizations: the files of each, in order.
func ggufs(paths []string) map[string][]string {
	series := map[string]map[string][]string{}
	for _, p := range paths {
		if strings.ToLower(path.Ext(p)) != ".gguf" || isProjector(p) {
			continue
		}
		q := quantizationOf(p)
		if series[q] == nil {
			series[q] = map[string][]string{}
		}
		stem := part.ReplaceAllString(strings.TrimSuffix(p, path.Ext(p)), "")
		series[q][stem] = append(series[q][stem], p)
	}
	found := map[string][]string{}
	for q, models := range series {
		var stems []string
		for stem := range models {
			stems = append(stems, stem)
		}
		// Of several the one with the plainest name: the others are drafts and variants of it.
		found[q] = models[slices.MinFunc(stems, func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
		})]
		slices.Sort(found[q])
	}
	return found
}

// chooseGGUF returns the files of the model of a quantization, with what turns images into what it sees. tag is empty
// for the best compromise.
func chooseGGUF(repository, tag string, paths []string) ([]string, error) {
	models := ggufs(paths)
	chosen := models[strings.ToUpper(tag)]
	if tag == "" {
		chosen = nil
		for _, q := range append(preferred, quantizations(models)...) {
			if chosen = models[q]; chosen != nil {
				break
			}
		}
	}
	if chosen == nil {
		return nil, errdefs.New(errdefs.ErrNotFound, "%s has neither a revision nor a quantization %q; its quantizations are %s",
			repository, tag, strings.Join(quantizations(models), ", "))
	}
	return append(chosen, projector(paths)...), nil
}

func quantizations(models map[string][]string) []string {
	var names []string
	for q := range models {
		names = append(names, q)
	}
	slices.Sort(names)
	return names
}

// projector returns the projector of a repository: the one in half precision if there are several.
func projector(paths []string) []string {
	all := slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return strings.ToLower(path.Ext(p)) != ".gguf" || !isProjector(p) })
	if len(all) == 0 {
		return nil
	}
	for _, q := range []string{"F16", "BF16", "Q8_0"} {
		if i := slices.IndexFunc(all, func(p string) bool { return quantizationOf(p) == q }); i >= 0 {
			return all[i : i+1]
		}
	}
	return all[:1]
}
