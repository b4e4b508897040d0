"""From files of images and features to descriptors, and how well those find the right place again."""
