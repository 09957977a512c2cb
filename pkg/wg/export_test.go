package wg

// What the tests of real devices share with those of Diff.
var (
	RandomDesired = randomDesired
	CheckHolds    = checkHolds
)
